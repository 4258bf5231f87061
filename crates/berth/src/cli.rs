//! What a person can type.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Many small web apps on one host: saved on an S3 mount, started by the first request, gone when idle.
#[derive(Debug, Parser)]
#[command(name = "berth", version, propagate_version = true, subcommand_required = true, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// The configuration file [default: /etc/berth/berth.toml where it exists]
    #[arg(long, short = 'c', global = true, env = "BERTH_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The daemon's socket [default: the one of the configuration]
    #[arg(long, global = true, env = "BERTH_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 no such app, workspace or image, \
4 no daemon answers, 130 interrupted; `exec` and `run` give the command's own.";

#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Command {
    /// Run the daemon: embedded S3, mount, monitor, sandboxes and edge
    Serve,
    /// List the apps
    Ps(Output),
    /// Show what an app wrote
    Logs(Logs),
    /// Run a command in a running app's sandbox
    Exec(Exec),
    /// Try a workspace by hand: a sandbox of its own with the source in /app, and a shell
    Run(Run),
    /// Show everything about an app
    Inspect(Inspect),
    /// Start an app without a request
    Start(AppArgument),
    /// Stop an app and start it again
    Restart(AppArgument),
    /// Stop an app; the next request starts it again
    Stop(AppArgument),
    /// Show what the apps use
    Stats(Output),
    /// Show what happened lately
    Events(Events),
    /// Show the daemon's own state
    Status(Output),
    /// Bring folders into the bucket as workspaces, without what is never stored; run again, it goes on
    Import(Import),
    /// Bring workspaces from the bucket into DIR/NAME; run again, it goes on
    Export(Export),
    /// Build, list, verify and remove images
    #[command(subcommand)]
    Image(Image),
    /// Work with the S3 server
    #[command(subcommand)]
    S3(S3),
    /// Check and show the configuration
    #[command(subcommand)]
    Config(Config),
    /// Look for what could keep Berth from working, and say how to mend it
    Doctor(Output),
    /// Print a completion script for a shell
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Output {
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct AppArgument {
    /// The app's name
    pub name: String,
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Logs {
    /// The app's name
    pub name: String,
    /// Go on with what comes
    #[arg(short, long)]
    pub follow: bool,
    /// How many lines of the past
    #[arg(short = 'n', long, default_value_t = 200, value_name = "LINES")]
    pub tail: usize,
    /// Show when each line was written
    #[arg(short, long)]
    pub timestamps: bool,
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Exec {
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set a variable in its environment
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// The folder it starts in
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// The app's name
    pub name: String,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Run {
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set a variable in its environment
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Install the dependencies first
    #[arg(long)]
    pub install: bool,
    /// The workspace's name
    pub name: String,
    /// The command and its arguments [default: sh, in a terminal where there is one]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Inspect {
    /// The app's name
    pub name: String,
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Events {
    /// Go on with what comes
    #[arg(short, long)]
    pub follow: bool,
    /// Only this app's
    pub name: Option<String>,
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Import {
    /// The folders; each becomes the workspace of its name
    #[arg(required = true, value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    /// Another name for the one workspace
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    pub transfer: Transfer,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Export {
    /// The workspaces, and last the folder in which each gets a folder of its name
    #[arg(required = true, value_name = "NAME... DIR")]
    pub names_and_dir: Vec<String>,
    /// Every workspace; then only DIR is named
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub transfer: Transfer,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Transfer {
    /// Leave this out too: `NAME/**` is folders, `NAME` is files, at any depth
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// Overwrite files that have other content at the destination
    #[arg(long)]
    pub force: bool,
    /// Compare, say what would be done, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Files on their way at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Image {
    /// Build images from their recipes; one that is up to date is left alone
    Build {
        /// Which: node, python, go, nginx
        #[arg(required_unless_present = "all")]
        names: Vec<String>,
        /// Every recipe there is
        #[arg(long, conflicts_with = "names")]
        all: bool,
        /// Build even what is up to date
        #[arg(long)]
        force: bool,
        /// Where the recipes are [default: ./images, then /usr/share/berth/images]
        #[arg(long, env = "BERTH_RECIPES", value_name = "DIR")]
        recipes: Option<PathBuf>,
    },
    /// List the images on this host
    Ls(Output),
    /// Compare image files with the checksums noted when they were built
    Verify {
        /// Which; all when none is named
        names: Vec<String>,
    },
    /// Remove images from this host
    Rm {
        /// Which
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum S3 {
    /// Print what any S3 client needs, as shell variables: eval "$(berth s3 env)"
    Env(Output),
}

#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Config {
    /// Say whether the configuration is right, and else which line is wrong
    Check,
    /// Print the configuration in force, defaults and environment included
    Show {
        /// Print the documented default file instead
        #[arg(long)]
        default: bool,
    },
    /// Print the JSON Schema of workspace.json, for editors
    Schema,
}

/// `KEY=VALUE`.
fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_after_the_name_keeps_its_own_options() {
        let cli = Cli::try_parse_from(["berth", "exec", "-it", "api", "--", "ls", "-la"]).unwrap();
        let Command::Exec(exec) = cli.command else {
            panic!("no exec")
        };
        assert!(exec.interactive && exec.tty);
        assert_eq!(exec.command, ["ls", "-la"]);
        let cli = Cli::try_parse_from(["berth", "exec", "api", "ls", "-t"]).unwrap();
        let Command::Exec(exec) = cli.command else {
            panic!("no exec")
        };
        assert!(!exec.tty);
        assert_eq!(exec.command, ["ls", "-t"]);
    }
}
