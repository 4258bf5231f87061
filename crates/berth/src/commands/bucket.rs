//! `berth s3`.

use std::process::ExitCode;

use super::{print_json, print_line};
use crate::{cli, config::Config, failure::Failure};

pub fn run(command: &cli::S3, config: &Config) -> Result<ExitCode, Failure> {
    let cli::S3::Env(output) = command;
    let (access_key, secret_key) = keys(config)?;
    let endpoint = config
        .s3
        .endpoint
        .clone()
        .unwrap_or_else(|| format!("http://{}", config.s3.listen));
    let mut values = vec![
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", access_key),
        ("AWS_SECRET_ACCESS_KEY", secret_key),
        ("AWS_REGION", config.s3.region.clone()),
        ("AWS_DEFAULT_REGION", config.s3.region.clone()),
        ("S3_BUCKET", config.s3.bucket.clone()),
    ];
    if let Some(token) = &config.s3.session_token {
        values.push(("AWS_SESSION_TOKEN", token.clone()));
    }
    if output.json {
        return print_json(&values.into_iter().collect::<std::collections::BTreeMap<_, _>>());
    }
    for (name, value) in values {
        print_line(&format!("export {name}={}", quoted(&value)));
    }
    Ok(ExitCode::SUCCESS)
}

/// The keys in force. Those of the embedded server are made by the daemon's first start.
pub fn keys(config: &Config) -> Result<(String, String), Failure> {
    if let (Some(access), Some(secret)) = (&config.s3.access_key, &config.s3.secret_key) {
        return Ok((access.clone(), secret.clone()));
    }
    let path = config.credentials_file();
    let unreadable = |why: String| Failure::failed(format!("no keys of the embedded S3 in {}: {why}", path.display()));
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => return Err(unreadable("`berth serve` makes them at its first start".into())),
        Err(error) => return Err(unreadable(error.to_string())),
    }
    let read =
        berth_store::load_or_create_credentials(&path).map_err(|error| unreadable(berth_workspace::chain(&error)))?;
    Ok((read.access_key, read.secret_key))
}

/// Quoted for a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn values_survive_the_shell() {
        assert_eq!(super::quoted("it's"), r"'it'\''s'");
    }
}
