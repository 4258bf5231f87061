//! Which paths stay off S3: dependencies, build results, logs, secrets, and editors' temporary files.
//!
//! Two forms of pattern, as in the list people know from rclone:
//! - `NAME/**` (or `NAME/`) means *folders*: the folder itself and all below it, at any depth. A plain file of that name is
//!   stored: a script called `build` is source.
//! - `NAME` means *files*: the last component of a path, at any depth. A folder of that name is stored.
//!
//! NAME may hold `*`, `?`, `[...]` and `{a,b}`, none of which cross a `/`, and may have several components
//! (`docs/out/**`). Matching is by bytes, upper and lower case differ. "At any depth" counts from the bucket's root, so a
//! workspace called `build` would be excluded whole; the same answer comes for a path relative to its workspace.
//!
//! A path says only names, so the caller says whether it is a folder: [`Excludes::excluded`] is for files,
//! [`Excludes::excluded_dir`] for folders; a trailing slash also makes a folder.
//!
//! Asked for every path of every listing: the usual patterns are compared as plain text, globs only where there is a glob.

use std::sync::LazyLock;

use globset::{GlobBuilder, GlobMatcher};

/// The list used when none is configured.
pub const DEFAULT_EXCLUDES: [&str; 8] = [
    "node_modules/**",
    ".git/**",
    "*.log",
    ".env*",
    "dist/**",
    "build/**",
    "__pycache__/**",
    "vendor/**",
];

/// Characters that make a component more than plain text.
const MAGIC: [char; 7] = ['*', '?', '[', ']', '{', '}', '\\'];

/// A compiled list of patterns. Cheap to ask, made once.
#[derive(Debug, Clone)]
pub struct Excludes {
    patterns: Vec<String>,
    dirs: Vec<Rule>,
    files: Vec<Rule>,
}

/// A compiled pattern, and its place in the list.
#[derive(Debug, Clone)]
struct Rule {
    at: usize,
    segments: Vec<Segment>,
}

/// A pattern that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("exclude pattern {pattern:?}: {why}")]
pub struct ExcludesError {
    /// The pattern as it was given.
    pub pattern: String,
    /// What is wrong with it and what to write.
    pub why: String,
}

/// One component of a pattern.
#[derive(Debug, Clone)]
enum Segment {
    Literal(String),
    Prefix(String),
    Suffix(String),
    Glob(GlobMatcher),
}

impl Segment {
    fn compile(text: &str) -> Result<Self, String> {
        let plain = |t: &str| !t.is_empty() && !t.contains(MAGIC);
        if plain(text) {
            return Ok(Self::Literal(text.to_owned()));
        }
        if let Some(rest) = text.strip_prefix('*').filter(|t| plain(t)) {
            return Ok(Self::Suffix(rest.to_owned()));
        }
        if let Some(rest) = text.strip_suffix('*').filter(|t| plain(t)) {
            return Ok(Self::Prefix(rest.to_owned()));
        }
        let glob = GlobBuilder::new(text).literal_separator(true).build();
        Ok(Self::Glob(glob.map_err(|e| e.kind().to_string())?.compile_matcher()))
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Literal(t) => name == t,
            Self::Prefix(t) => name.starts_with(t.as_str()),
            Self::Suffix(t) => name.ends_with(t.as_str()),
            Self::Glob(g) => g.is_match(name),
        }
    }
}

impl Default for Excludes {
    fn default() -> Self {
        Self::standard().clone()
    }
}

impl Excludes {
    /// Compiles a list of patterns; an empty list excludes nothing.
    ///
    /// # Errors
    /// [`ExcludesError`] for the first pattern that is empty, negated, anchored, would exclude everything, or is a broken glob.
    pub fn new(patterns: &[String]) -> Result<Self, ExcludesError> {
        let mut made = Self {
            patterns: patterns.to_vec(),
            dirs: Vec::new(),
            files: Vec::new(),
        };
        for (at, pattern) in patterns.iter().enumerate() {
            made.add(at, pattern).map_err(|why| ExcludesError {
                pattern: pattern.clone(),
                why,
            })?;
        }
        Ok(made)
    }

    fn add(&mut self, at: usize, pattern: &str) -> Result<(), String> {
        if pattern.trim().is_empty() {
            return Err("is empty; leave it out".into());
        }
        if pattern.starts_with('!') {
            return Err("patterns cannot be negated; list only what is excluded".into());
        }
        if pattern.starts_with('/') {
            return Err("patterns match at any depth; write it without the leading /".into());
        }
        let anywhere = pattern.strip_prefix("**/").unwrap_or(pattern);
        let (base, is_dir) = match anywhere.strip_suffix("/**").or_else(|| anywhere.strip_suffix('/')) {
            Some(base) => (base, true),
            None => (anywhere, false),
        };
        if base.chars().all(|c| matches!(c, '*' | '/')) {
            return Err("would exclude everything".into());
        }
        let mut segments = Vec::new();
        for part in base.split('/') {
            match part {
                "" => return Err("has an empty component; write single slashes".into()),
                "**" => return Err("`**` may stand only at the beginning or the end".into()),
                "." | ".." => return Err("`.` and `..` match nothing; leave them out".into()),
                part => segments.push(Segment::compile(part)?),
            }
        }
        let rules = if is_dir { &mut self.dirs } else { &mut self.files };
        rules.push(Rule { at, segments });
        Ok(())
    }

    /// This list and more patterns: those a workspace adds for itself.
    ///
    /// # Errors
    /// [`ExcludesError`] for the first of `more` that cannot be used.
    pub fn with(&self, more: &[String]) -> Result<Self, ExcludesError> {
        let mut both = self.patterns.clone();
        both.extend_from_slice(more);
        Self::new(&both)
    }

    /// The default list, compiled once for the whole program.
    #[must_use]
    pub fn standard() -> &'static Self {
        static STANDARD: LazyLock<Excludes> = LazyLock::new(|| {
            let patterns = DEFAULT_EXCLUDES.map(str::to_owned);
            // The patterns are constants and a test compiles them.
            Excludes::new(&patterns).unwrap_or_else(|e| unreachable!("{e}"))
        });
        &STANDARD
    }

    /// The patterns as they were given.
    #[must_use]
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }

    /// Whether a file at this path is never stored: a parent is an excluded folder, or its name matches a file pattern.
    ///
    /// A path with a trailing slash is taken for a folder, as by [`Self::excluded_dir`].
    #[must_use]
    pub fn excluded(&self, path: &str) -> bool {
        self.excluding(path).is_some()
    }

    /// The pattern by which [`Self::excluded`] says yes, as it was given; a trailing slash makes the path a folder.
    #[must_use]
    pub fn excluding(&self, path: &str) -> Option<&str> {
        let rule = if path.ends_with('/') {
            self.folder_rule(path.trim_matches('/'))
        } else {
            let path = path.trim_start_matches('/');
            let parents = path.rfind('/').map_or("", |end| &path[..end]);
            self.folder_rule(parents)
                .or_else(|| self.files.iter().find(|rule| ends_with(&rule.segments, path)))
        };
        rule.and_then(|rule| self.patterns.get(rule.at)).map(String::as_str)
    }

    /// Whether a folder at this path is never stored: it or a parent matches a folder pattern.
    #[must_use]
    pub fn excluded_dir(&self, path: &str) -> bool {
        self.folder_rule(path.trim_matches('/')).is_some()
    }

    /// The rule that the first excluded folder on this path of folders matches.
    fn folder_rule(&self, dirs: &str) -> Option<&Rule> {
        if dirs.is_empty() {
            return None;
        }
        let ends = dirs.match_indices('/').map(|(at, _)| at).chain([dirs.len()]);
        ends.into_iter()
            .find_map(|end| self.dirs.iter().find(|rule| ends_with(&rule.segments, &dirs[..end])))
    }

    /// Whether the name is one that editors and tools use for files of a moment: swap, backup, lock and temporary files.
    ///
    /// Never true for folders by meaning: ask it for files only. It does not depend on the patterns.
    #[must_use]
    pub fn transient(&self, path: &str) -> bool {
        is_transient(path.rsplit('/').next().unwrap_or(path))
    }

    /// Whether a file at this path stays local: excluded or transient.
    #[must_use]
    pub fn local_only(&self, path: &str) -> bool {
        self.excluded(path) || (!path.ends_with('/') && self.transient(path))
    }

    /// Whether a folder at this path stays local. Folders are never transient.
    #[must_use]
    pub fn local_only_dir(&self, path: &str) -> bool {
        self.excluded_dir(path)
    }
}

/// Whether the last components of `path` are those of `pattern`.
fn ends_with(pattern: &[Segment], path: &str) -> bool {
    let mut components = path.rsplit('/');
    pattern
        .iter()
        .rev()
        .all(|segment| components.next().is_some_and(|name| segment.matches(name)))
}

/// Names of files that live for a moment: vim, emacs, gedit, LibreOffice, JetBrains, Kate, NFS, FUSE and sed.
fn is_transient(name: &str) -> bool {
    if let Some(rest) = name.strip_prefix('.') {
        // vim: .NAME.swp counting down to .swa, the probe .NAME.swpx, and .swp for a buffer without a name.
        let vim = |tail: &str| {
            tail.strip_prefix("sw")
                .is_some_and(|t| t == "px" || t.chars().count() == 1)
        };
        let last_part = rest.rfind('.').map_or(rest, |dot| &rest[dot + 1..]);
        if vim(last_part) || last_part == "kate-swp" {
            return true;
        }
        let begins = ["#", "goutputstream-", "~lock.", "nfs", "fuse_hidden"];
        if begins.iter().any(|b| rest.starts_with(b)) {
            return true;
        }
    }
    // 4913 is the file by which vim finds out whether it may write in a folder.
    name == "4913"
        || (name.len() > 1 && name.ends_with('~'))
        || (name.len() > 2 && name.starts_with('#') && name.ends_with('#'))
        || name.ends_with("___jb_tmp___")
        || name.ends_with("___jb_old___")
        || is_sed_temp(name)
}

/// `sedXXXXXX`, made by `sed -i`. A name all in small letters could be a word ("seduction"): 1 of 200 of sed's names, then
/// stored for a moment, which does no harm; a person's file that is never stored would.
fn is_sed_temp(name: &str) -> bool {
    name.strip_prefix("sed").is_some_and(|tail| {
        tail.len() == 6
            && tail.bytes().all(|b| b.is_ascii_alphanumeric())
            && !tail.bytes().all(|b| b.is_ascii_lowercase())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn made(patterns: &[&str]) -> Excludes {
        Excludes::new(&patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_reference_list_at_any_depth() {
        let e = Excludes::default();
        let yes = [
            "a/node_modules/b.js",
            "a/x/node_modules/b/c",
            "node_modules/a",
            "a/.git/HEAD",
            "a/x.log",
            "a/.log",
            "a/.env",
            "a/b/.env.local",
            "a/dist/index.html",
            "a/b/build/x",
            "a/__pycache__/x.pyc",
            "a/vendor/y",
            "a/dist/",
            "/a/dist/x",
        ];
        let no = [
            "a/index.js",
            "a/dist",
            "a/build",
            "a/vendor",
            "a/node_modules",
            "a/distance/x",
            "a/my-build/x",
            "a/x.logs",
            "a/log",
            "a/env",
            "a/.gitignore",
            "a/.github/x",
            "a/.envs/x",
            "a/x.log/y",
            "",
            "/",
        ];
        for path in yes {
            assert!(e.excluded(path) && e.local_only(path), "{path}");
        }
        for path in no {
            assert!(!e.excluded(path), "{path}");
        }
        for dir in ["a/dist", "a/dist/", "a/dist/x", "build", "a/b/.git"] {
            assert!(e.excluded_dir(dir) && e.local_only_dir(dir), "{dir}");
        }
        for dir in ["a", "a/x.log", "a/.env", "", "/", "a/.#x"] {
            assert!(!e.excluded_dir(dir) && !e.local_only_dir(dir), "{dir}");
        }
    }

    #[test]
    fn the_pattern_that_excludes_is_named() {
        let e = Excludes::default();
        for (path, pattern) in [
            ("a/node_modules/dist/x", Some("node_modules/**")),
            ("a/node_modules/", Some("node_modules/**")),
            ("a/dist/x.log", Some("dist/**")),
            ("a/x.log", Some("*.log")),
            ("a/.env", Some(".env*")),
            ("a/build", None),
        ] {
            assert_eq!(e.excluding(path), pattern, "{path}");
        }
    }

    #[test]
    fn a_workspace_adds_to_the_list_and_takes_nothing_away() {
        let more = Excludes::default()
            .with(&["*.bin".into(), "docs/out/**".into()])
            .unwrap();
        assert!(more.excluded("a/x.bin") && more.excluded("a/docs/out/x") && more.excluded("a/node_modules/x"));
        assert_eq!(more.excluding("a/x.bin"), Some("*.bin"));
        assert!(Excludes::default().with(&["!x".into()]).is_err());
    }

    #[test]
    fn patterns_of_an_operator() {
        let e = made(&[
            "docs/out/**",
            "*.t?p",
            "cache-*/",
            "**/tmp/**",
            "{a,b}.bin",
            "conf/*.local",
        ]);
        for path in [
            "w/docs/out/x",
            "w/a.tmp",
            "w/cache-1/x",
            "tmp/x",
            "w/b.bin",
            "w/conf/x.local",
        ] {
            assert!(e.excluded(path), "{path}");
        }
        for path in ["w/out/x", "w/docs/x", "w/cache-1", "w/c.bin", "w/x.local", "w/docs/out"] {
            assert!(!e.excluded(path), "{path}");
        }
        assert!(!made(&[]).excluded("a/node_modules/x"));
    }

    #[test]
    fn a_bad_pattern_is_named() {
        for (pattern, why) in [
            ("", "empty"),
            ("!keep", "negated"),
            ("/dist/**", "leading /"),
            ("**", "everything"),
            ("*/**", "everything"),
            ("a//b", "empty component"),
            ("a/**/b", "beginning or the end"),
            ("[a", "class"),
            ("a{b", "alternate"),
            ("../x", "`..`"),
        ] {
            let e = Excludes::new(&["ok".into(), pattern.into()]).expect_err(pattern);
            assert_eq!(e.pattern, pattern);
            assert!(e.to_string().contains(why), "{pattern}: {e}");
        }
    }

    #[test]
    fn names_of_a_moment() {
        let e = Excludes::default();
        for name in [
            ".index.js.swp",
            ".index.js.swo",
            ".index.js.swx",
            ".index.js.swpx",
            ".swp",
            "4913",
            "index.js~",
            ".#index.js",
            "#index.js#",
            ".goutputstream-ABC123",
            ".~lock.a.odt#",
            ".nfs000001",
            ".fuse_hidden0001",
            "sedAb3dEf",
            "x.js___jb_tmp___",
            ".a.kate-swp",
        ] {
            assert!(
                e.transient(name) && e.transient(&format!("a/b/{name}")) && e.local_only(name),
                "{name}"
            );
        }
        for name in [
            "index.js",
            "~",
            "#",
            "##",
            "a.swp",
            "swp",
            ".swift",
            ".a.swift",
            "49130",
            "#readme",
            ".nf",
            "seduction",
            "sedimentary",
            "sed",
            "sed-Ab3de",
            ".goutput",
            ".sw",
        ] {
            assert!(!e.transient(name), "{name}");
        }
        assert!(!e.transient("a~/b") && !e.local_only("a~/"));
    }

    /// The rules as they are written in words, by way of whole-path globs.
    fn naive(path: &str, folder: bool) -> bool {
        let glob = |g: &str| {
            GlobBuilder::new(g)
                .literal_separator(true)
                .build()
                .unwrap()
                .compile_matcher()
                .is_match(path)
        };
        DEFAULT_EXCLUDES
            .iter()
            .any(|pattern| match pattern.strip_suffix("/**") {
                Some(dir) => glob(&format!("**/{dir}/**")) || (folder && glob(&format!("**/{dir}"))),
                None => !folder && glob(&format!("**/{pattern}")),
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn agrees_with_the_rules_in_words(
            parts in prop::collection::vec(prop_oneof![
                3 => prop::sample::select(vec!["node_modules", ".git", "dist", "build", "__pycache__", "vendor", "a.log", ".env", ".envx", "src"]),
                1 => prop::sample::select(vec![".log", "log", "dist.", "xdist", "a", ".", "é", ".gitx"]),
            ], 1..6),
        ) {
            let path = parts.join("/");
            let e = Excludes::standard();
            prop_assert_eq!(e.excluded(&path), naive(&path, false), "{}", path);
            prop_assert_eq!(e.excluded_dir(&path), naive(&path, true), "{}", path);
            prop_assert_eq!(e.excluded(&format!("{path}/")), naive(&path, true), "{}/", path);
        }

        #[test]
        fn what_is_below_an_excluded_folder_is_excluded(path in "[a-z./]{1,20}", below in "[a-z/]{1,10}") {
            let e = made(&["a*/**", "[b-d]/**"]);
            if e.excluded_dir(&path) {
                let inside = format!("{}/{}", path.trim_matches('/'), below.trim_matches('/'));
                prop_assert!(e.excluded(&inside));
            }
        }

        #[test]
        fn any_text_is_a_pattern_or_an_error(pattern in any::<String>(), path in any::<String>()) {
            if let Ok(e) = Excludes::new(&[pattern]) {
                let _ = (e.local_only(&path), e.local_only_dir(&path));
            }
        }
    }
}
