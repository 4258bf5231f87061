//! `berth config`.

use std::process::ExitCode;

use super::print_line;
use crate::{cli, config::Config, failure::Failure};

pub fn run(command: &cli::Config, config: &Config) -> Result<ExitCode, Failure> {
    match command {
        // A wrong configuration never gets here: `main` reads it first and reports the line.
        cli::Config::Check => print_line("The configuration is right."),
        cli::Config::Show { default: true } => print_line(include_str!("../../berth.toml").trim_end()),
        cli::Config::Show { default: false } => {
            let mut shown = config.clone();
            for secret in [&mut shown.s3.secret_key, &mut shown.s3.session_token]
                .into_iter()
                .flatten()
            {
                *secret = "(set, not shown)".into();
            }
            let text = toml::to_string_pretty(&shown).map_err(|error| Failure::from_error(&error))?;
            print_line(text.trim_end());
        }
        cli::Config::Schema => print_line(berth_workspace::json_schema().trim_end()),
    }
    Ok(ExitCode::SUCCESS)
}
