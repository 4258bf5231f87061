//! `berth image`: works on the host's files, with or without a daemon.

use std::{path::Path, process::ExitCode};

use berth_image::{ImageStore, Recipe};

use super::{print_json, print_line, table};
use crate::{cli, config::Config, failure::Failure};

pub fn run(command: cli::Image, config: &Config) -> Result<ExitCode, Failure> {
    let store = ImageStore::open(config.images_dir(), config.paths.run.join("images"))
        .map_err(|error| Failure::from_error(&error))?;
    match command {
        cli::Image::Build {
            names,
            all,
            force,
            recipes,
        } => {
            let recipes = recipes.or_else(|| config.paths.recipes.clone());
            build(&store, &names, all, force, recipes.as_deref())
        }
        cli::Image::Ls(output) => list(&store, output.json),
        cli::Image::Verify { names } => verify(&store, names),
        cli::Image::Rm { names } => {
            for name in names {
                store.remove(&name).map_err(|error| failed(&error))?;
                print_line(&format!("removed {name}"));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn failed(error: &berth_image::ImageError) -> Failure {
    let message = berth_workspace::chain(error);
    if error.is_not_found() {
        Failure::not_found(message)
    } else {
        Failure::failed(message)
    }
}

fn build(
    store: &ImageStore,
    names: &[String],
    all: bool,
    force: bool,
    recipes: Option<&Path>,
) -> Result<ExitCode, Failure> {
    let names = if all {
        Recipe::names(recipes).map_err(|error| failed(&error))?
    } else {
        names.to_vec()
    };
    for name in names {
        let recipe = match recipes {
            Some(dir) => Recipe::load(dir, &name),
            None => Recipe::find(&name),
        }
        .map_err(|error| failed(&error))?;
        let mut say = |line: &str| eprintln!("{name}: {line}");
        let built = store
            .build_with(&recipe, force, &mut say)
            .map_err(|error| failed(&error))?;
        print_line(&format!(
            "{name}: {}, sha256 {}",
            table::bytes(built.size),
            &built.sha256[..12.min(built.sha256.len())]
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn list(store: &ImageStore, json: bool) -> Result<ExitCode, Failure> {
    let images = store.list().map_err(|error| failed(&error))?;
    if json {
        return print_json(&images);
    }
    let mut shown = table::table(&["IMAGE", "SIZE", "SHA256", "CONTENTS"], &[1]);
    for image in images {
        let contents: Vec<_> = image
            .versions
            .iter()
            .map(|(what, version)| format!("{what} {version}"))
            .collect();
        shown.add_row([
            image.name.clone(),
            table::bytes(image.size),
            image.sha256[..12.min(image.sha256.len())].to_owned(),
            contents.join(", "),
        ]);
    }
    print_line(&table::render(&shown));
    Ok(ExitCode::SUCCESS)
}

fn verify(store: &ImageStore, names: Vec<String>) -> Result<ExitCode, Failure> {
    let names = if names.is_empty() {
        store
            .list()
            .map_err(|error| failed(&error))?
            .into_iter()
            .map(|image| image.name)
            .collect()
    } else {
        names
    };
    let mut wrong = 0;
    for name in names {
        match store.verify(&name) {
            Ok(_) => print_line(&format!("{name}: as built")),
            Err(error) if error.is_not_found() => return Err(failed(&error)),
            Err(error) => {
                wrong += 1;
                eprintln!("berth: {}", berth_workspace::chain(&error));
            }
        }
    }
    Ok(if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
