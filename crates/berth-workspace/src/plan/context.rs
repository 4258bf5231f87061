//! What the kinds' modules look at: the list of files, their text, and `workspace.json`.

use std::collections::BTreeSet;

use super::{PlanError, Source, Step};
use crate::file;
use crate::{AppName, WorkspaceFile};

/// One workspace while its plan is made.
pub(super) struct Context<'a> {
    pub app: &'a AppName,
    pub file: WorkspaceFile,
    source: &'a Source<'a>,
    /// Sorted, so that what is found does not depend on the order of the listing.
    paths: BTreeSet<&'a str>,
}

impl<'a> Context<'a> {
    pub fn new(app: &'a AppName, source: &'a Source<'a>) -> Result<Self, PlanError> {
        let paths = source.files.iter().map(|f| f.path.as_str()).collect();
        let mut context = Self {
            app,
            file: WorkspaceFile::default(),
            source,
            paths,
        };
        if let Some(bytes) = context.read(file::PATH)? {
            context.file = WorkspaceFile::parse(&bytes).map_err(PlanError::BadWorkspaceFile)?;
        }
        Ok(context)
    }

    /// Whether there is a file at this path.
    pub fn has(&self, path: &str) -> bool {
        self.paths.contains(path)
    }

    /// All paths, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.paths.iter().copied()
    }

    /// The bytes of a file; `None` if there is none.
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>, PlanError> {
        if !self.has(path) {
            return Ok(None);
        }
        match (self.source.read)(path) {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(PlanError::Unreadable { path: path.to_owned() }),
        }
    }

    /// The text of a file that is only searched: bytes that are not UTF-8 do not matter.
    pub fn text(&self, path: &str) -> Result<Option<String>, PlanError> {
        Ok(self
            .read(path)?
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The start that `workspace.json` says.
    pub fn command(&self) -> Option<Step> {
        self.file.command.as_ref().map(Step::of_command)
    }

    /// The command of the line `web:` of a Procfile.
    pub fn procfile(&self) -> Result<Option<Step>, PlanError> {
        let text = self.text("Procfile")?.unwrap_or_default();
        let web = text.lines().find_map(|line| line.trim().strip_prefix("web:"));
        Ok(web.map(str::trim).filter(|line| !line.is_empty()).map(|line| Step {
            what: format!("{line} (Procfile)"),
            ..Step::shell(line)
        }))
    }
}
