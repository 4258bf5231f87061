//! Builds images from the repository's recipes: `cargo run -p berth-image --example build -- IMAGES_DIR NAME...`.

use std::path::PathBuf;

use berth_image::{ImageError, ImageStore, Recipe};

fn main() -> Result<(), ImageError> {
    let mut arguments = std::env::args().skip(1);
    let images = PathBuf::from(arguments.next().unwrap_or_else(|| "/var/lib/berth/images".to_owned()));
    let store = ImageStore::open(images.clone(), images.join(".mounts"))?;
    for name in arguments {
        let info = store.build(&Recipe::find(&name)?, &mut |what| println!("{what}"))?;
        println!(
            "{}: {} bytes, sha256 {}, {:?}",
            info.name, info.size, info.sha256, info.versions
        );
    }
    Ok(())
}
