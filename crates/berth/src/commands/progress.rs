//! One line on a terminal that says how far a transfer is; nothing anywhere else.
//!
//! It is drawn on standard error, so that standard output stays what a script reads, and wiped before anything is printed.

use std::{
    io::{IsTerminal, Write},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use berth_transfer::{Progress, Tally};

use super::table::{age, bytes};

/// How often it is drawn.
const BEAT: Duration = Duration::from_millis(100);
/// Cells of the bar.
const CELLS: u64 = 24;

/// Draws until `work` is done.
pub async fn shown<T>(what: &str, tally: &Tally, work: impl Future<Output = T>) -> T {
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    let begun = Instant::now();
    let mut beat = tokio::time::interval(BEAT);
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => {
                draw("");
                return done;
            }
            _ = beat.tick() => draw(&line(what, tally.progress(), begun.elapsed(), width())),
        }
    }
}

/// Takes the place of the line before. A terminal that went away is no error.
fn draw(line: &str) {
    let mut out = std::io::stderr().lock();
    let _ = write!(out, "\r\x1b[K{line}");
    let _ = out.flush();
}

fn width() -> usize {
    let size = berth_sys::terminal::window_size(std::io::stderr().as_fd());
    size.map_or(80, |(_, columns)| usize::from(columns.max(20)))
}

fn line(what: &str, progress: Progress, spent: Duration, width: usize) -> String {
    let Progress {
        files,
        bytes: all,
        files_done,
        bytes_done,
    } = progress;
    let mut line = if files == 0 {
        format!("{what}: comparing, {}", age(spent))
    } else {
        // Files without content count too: each weighs a byte.
        let (done, whole) = (bytes_done.min(all) + files_done, all + files);
        let full = usize::try_from(CELLS * done / whole.max(1)).unwrap_or(0);
        let bar: String = "#".repeat(full) + &"-".repeat(CELLS as usize - full);
        let left = (done > 0).then(|| {
            // A guess needs no more precision.
            #[allow(clippy::cast_precision_loss)]
            let rest = spent.mul_f64((whole - done) as f64 / done as f64);
            format!(", {} left", age(rest))
        });
        let left = left.unwrap_or_default();
        format!(
            "{what} [{bar}] {files_done}/{files} files, {} of {}{left}",
            bytes(bytes_done),
            bytes(all)
        )
    };
    // All ASCII; a line that wraps could not be wiped.
    line.truncate(width - 1);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_how_far_it_is_and_fits() {
        let half = Progress {
            files: 4,
            bytes: 4 << 20,
            files_done: 2,
            bytes_done: 2 << 20,
        };
        let text = line("import", half, Duration::from_secs(10), 120);
        assert!(
            text.starts_with("import [############------------] 2/4 files, 2.0 MiB of 4.0 MiB, 10s left"),
            "{text}"
        );
        assert_eq!(line("import", half, Duration::from_secs(10), 20).len(), 19);
        let done = Progress {
            files: 1,
            bytes: 0,
            files_done: 1,
            bytes_done: 0,
        };
        assert!(line("export", done, Duration::ZERO, 120).contains("[########################]"));
        let none = Progress {
            files: 0,
            bytes: 0,
            files_done: 0,
            bytes_done: 0,
        };
        assert!(line("import", none, Duration::ZERO, 120).contains("comparing"));
    }
}
