//! The commands that are not the daemon.

mod apps;
mod bucket;
mod images;
mod logs;
mod progress;
mod session;
mod settings;
mod table;
mod transfer;

use std::{path::PathBuf, process::ExitCode};

pub use apps::waiting;
pub use bucket::keys as s3_keys;
use clap::CommandFactory;

use crate::{
    cli::{Cli, Command},
    client::Client,
    config::Config,
    doctor,
    failure::Failure,
};

/// Runs one command to its end.
pub fn run(command: Command, config: Config, socket: Option<PathBuf>) -> Result<ExitCode, Failure> {
    let client = Client::new(socket.unwrap_or_else(|| config.admin_socket()));
    match command {
        // `main` sends it elsewhere.
        Command::Serve => Err(Failure::failed("the daemon is started by `berth serve`")),
        Command::Image(command) => images::run(command, &config),
        Command::Import(wanted) => transfer::import(&wanted, &config),
        Command::Export(wanted) => transfer::export(&wanted, &config),
        Command::S3(command) => bucket::run(&command, &config),
        Command::Config(command) => settings::run(&command, &config),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "berth", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor(output) => block_on(doctor::command(config, output.json))?,
        Command::Ps(output) => block_on(apps::ps(&client, output.json))?,
        Command::Stats(output) => block_on(apps::stats(&client, output.json))?,
        Command::Status(output) => block_on(apps::status(&client, output.json))?,
        Command::Inspect(inspect) => block_on(apps::inspect(&client, &inspect.name, inspect.json))?,
        Command::Start(app) => block_on(apps::act(&client, "start", &app))?,
        Command::Restart(app) => block_on(apps::act(&client, "restart", &app))?,
        Command::Stop(app) => block_on(apps::act(&client, "stop", &app))?,
        Command::Logs(wanted) => block_on(logs::logs(&client, &wanted))?,
        Command::Events(wanted) => block_on(logs::events(&client, &wanted))?,
        Command::Exec(exec) => block_on(session::exec(&client, exec))?,
        Command::Run(run) => block_on(session::run(&client, run))?,
    }
}

/// One thread is enough for a client.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let done = runtime.block_on(work);
    // A read of standard input may still be under way on a thread: nobody waits for it.
    runtime.shutdown_background();
    Ok(done)
}

/// Prints a value as JSON.
fn print_json(value: &impl serde::Serialize) -> Result<ExitCode, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::from_error(&error))?;
    print_line(&text);
    Ok(ExitCode::SUCCESS)
}

/// Prints a line; a reader that has gone away (`berth ps | head -1`) is no error.
fn print_line(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}
