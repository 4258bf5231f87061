//! JSON that remembers where everything stands, so that every complaint can name its line and column.
//!
//! `serde_json` knows the place of a syntax error, but not that of a value which only later turns out to be wrong (a port of
//! 70000 is a fine number). So `workspace.json` and `package.json` are read into a tree whose nodes carry their positions;
//! what the values mean is decided by the readers of that tree. Strict JSON (RFC 8259), a byte order mark at the beginning
//! is skipped as npm does; the usual slips (comments, trailing commas, single quotes) are named instead of "expected value".

use std::str::Chars;

/// Nesting beyond which a document is refused; the parser recurses.
const MAX_DEPTH: usize = 100;

/// A place in a file, both from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub line: usize,
    pub column: usize,
}

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub at: Position,
    pub value: Value,
}

/// A JSON value; numbers stay text, so that 70000 and 1e3 can be quoted as they were written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(String),
    String(String),
    Array(Vec<Node>),
    /// In order of writing; a key may stand twice.
    Object(Vec<Member>),
}

/// One key of an object with its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    pub key: String,
    pub at: Position,
    pub value: Node,
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub at: Position,
    pub message: String,
}

impl Value {
    /// What it is, for people.
    pub(crate) fn describe(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::String(_) => "a text",
            Self::Array(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

impl Node {
    /// The value of a key, the last one if the key stands twice (as npm and `JSON.parse` take it).
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Object(members) => members.iter().rev().find(|m| m.key == key).map(|m| &m.value),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The members; none if it is no object.
    pub(crate) fn members(&self) -> &[Member] {
        match &self.value {
            Value::Object(members) => members,
            _ => &[],
        }
    }
}

/// Reads a whole document.
pub(crate) fn parse(bytes: &[u8]) -> Result<Node, Mistake> {
    let (text, broken) = match std::str::from_utf8(bytes) {
        Ok(text) => (text, false),
        // Read up to the bad byte only to find its line and column.
        Err(e) => (std::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default(), true),
    };
    let mut reader = Reader::new(text.strip_prefix('\u{feff}').unwrap_or(text));
    if broken {
        while reader.bump().is_some() {}
        return Err(reader.mistake("this byte is not UTF-8; save the file as UTF-8"));
    }
    reader.space();
    if reader.peek().is_none() {
        return Err(Mistake {
            at: Position { line: 1, column: 1 },
            message: "the file is empty".into(),
        });
    }
    let node = reader.node(0)?;
    reader.space();
    match reader.peek() {
        None => Ok(node),
        Some(_) => Err(reader.unexpected("the end of the file")),
    }
}

struct Reader<'a> {
    rest: Chars<'a>,
    at: Position,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            rest: text.chars(),
            at: Position { line: 1, column: 1 },
        }
    }

    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        if c == '\n' {
            self.at = Position {
                line: self.at.line + 1,
                column: 1,
            };
        } else {
            self.at.column += 1;
        }
        Some(c)
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.bump();
        }
        found
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t' | '\n' | '\r')) {
            self.bump();
        }
    }

    fn mistake(&self, message: impl Into<String>) -> Mistake {
        Mistake {
            at: self.at,
            message: message.into(),
        }
    }

    /// Says what stands here instead of `wanted`.
    fn unexpected(&self, wanted: &str) -> Mistake {
        let text = match self.peek() {
            None => format!("the file ends here, but {wanted} was expected"),
            Some('/') if matches!(self.rest.as_str().as_bytes(), [b'/', b'/' | b'*', ..]) => {
                "comments are not allowed in JSON; remove it".to_owned()
            }
            Some('#') => "comments are not allowed in JSON; remove it".to_owned(),
            Some('\'') => "texts are written in double quotes (\")".to_owned(),
            Some(c) if c.is_control() => format!(
                "the character U+{:04X} stands where {wanted} was expected",
                u32::from(c)
            ),
            Some(c) => format!("`{c}` stands where {wanted} was expected"),
        };
        self.mistake(text)
    }

    fn node(&mut self, depth: usize) -> Result<Node, Mistake> {
        if depth > MAX_DEPTH {
            return Err(self.mistake(format!("nested more than {MAX_DEPTH} deep")));
        }
        let at = self.at;
        let value = match self.peek() {
            Some('{') => self.object(depth)?,
            Some('[') => self.array(depth)?,
            Some('"') => Value::String(self.string()?),
            Some('-' | '0'..='9') => Value::Number(self.number()?),
            Some(c) if c.is_ascii_alphabetic() => self.word()?,
            _ => return Err(self.unexpected("a value")),
        };
        Ok(Node { at, value })
    }

    fn word(&mut self) -> Result<Value, Mistake> {
        let at = self.at;
        let mut word = String::new();
        while let Some(c) = self.peek().filter(|c| c.is_ascii_alphanumeric() || *c == '_') {
            word.push(c);
            self.bump();
        }
        match word.as_str() {
            "null" => Ok(Value::Null),
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => {
                word = shorten(&word);
                Err(Mistake {
                    at,
                    message: format!("`{word}` is no value; a text is written in double quotes: \"{word}\""),
                })
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, Mistake> {
        self.bump();
        let mut items = Vec::new();
        self.space();
        if self.take(']') {
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.node(depth + 1)?);
            if self.comma(']')? {
                return Ok(Value::Array(items));
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, Mistake> {
        self.bump();
        let mut members = Vec::new();
        self.space();
        if self.take('}') {
            return Ok(Value::Object(members));
        }
        loop {
            let at = self.at;
            match self.peek() {
                Some('"') => {}
                Some(c) if c.is_alphabetic() || c == '_' => {
                    return Err(self.mistake("a key is written in double quotes"));
                }
                _ => return Err(self.unexpected("a key in double quotes")),
            }
            let key = self.string()?;
            self.space();
            if !self.take(':') {
                return Err(self.unexpected(&format!("`:` after the key `{}`", shorten(&key))));
            }
            self.space();
            members.push(Member {
                key,
                at,
                value: self.node(depth + 1)?,
            });
            if self.comma('}')? {
                return Ok(Value::Object(members));
            }
        }
    }

    /// After a value: true if `close` ends the list, false if a comma goes on with it.
    fn comma(&mut self, close: char) -> Result<bool, Mistake> {
        self.space();
        if self.take(close) {
            return Ok(true);
        }
        let comma = self.at;
        if !self.take(',') {
            return Err(self.unexpected(&format!("`,` or `{close}`")));
        }
        self.space();
        if self.peek() == Some(close) {
            return Err(Mistake {
                at: comma,
                message: format!("a comma before `{close}` is not allowed in JSON; remove it"),
            });
        }
        Ok(false)
    }

    fn number(&mut self) -> Result<String, Mistake> {
        let mut text = String::new();
        self.digit_if(&mut text, |c| c == '-');
        if !self.digit_if(&mut text, |c| c == '0') {
            self.digits(&mut text)?;
        } else if matches!(self.peek(), Some('0'..='9')) {
            return Err(self.mistake("a number does not begin with 0; remove the zero"));
        }
        if self.digit_if(&mut text, |c| c == '.') {
            self.digits(&mut text)?;
        }
        if self.digit_if(&mut text, |c| matches!(c, 'e' | 'E')) {
            self.digit_if(&mut text, |c| matches!(c, '+' | '-'));
            self.digits(&mut text)?;
        }
        Ok(text)
    }

    fn digit_if(&mut self, text: &mut String, fits: impl Fn(char) -> bool) -> bool {
        match self.peek().filter(|c| fits(*c)) {
            Some(c) => {
                text.push(c);
                self.bump();
                true
            }
            None => false,
        }
    }

    fn digits(&mut self, text: &mut String) -> Result<(), Mistake> {
        if !self.digit_if(text, |c| c.is_ascii_digit()) {
            return Err(self.unexpected("a digit"));
        }
        while self.digit_if(text, |c| c.is_ascii_digit()) {}
        Ok(())
    }

    fn string(&mut self) -> Result<String, Mistake> {
        let open = self.at;
        self.bump();
        let mut text = String::new();
        loop {
            let before = self
                .mistake("a line break inside a text; is the closing \" missing? (a wanted line break is written \\n)");
            match self.bump() {
                Some('"') => return Ok(text),
                Some('\\') => text.push(self.escape()?),
                Some('\n' | '\r') => return Err(before),
                Some(c) if u32::from(c) < 0x20 => {
                    let message = format!("the control character U+{0:04X} is written \\u{0:04x}", u32::from(c));
                    return Err(Mistake { message, ..before });
                }
                Some(c) => text.push(c),
                None => {
                    return Err(Mistake {
                        at: open,
                        message: "this text has no closing \"".into(),
                    });
                }
            }
        }
    }

    fn escape(&mut self) -> Result<char, Mistake> {
        let unknown = self.mistake("unknown escape; a backslash itself is written \\\\");
        Ok(match self.bump() {
            Some('"') => '"',
            Some('\\') => '\\',
            Some('/') => '/',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => return self.unicode(),
            _ => return Err(unknown),
        })
    }

    fn unicode(&mut self) -> Result<char, Mistake> {
        let half = self.mistake("half of a surrogate pair; write the character itself");
        let first = self.hex4()?;
        let code = match first {
            0xd800..=0xdbff => {
                if !(self.take('\\') && self.take('u')) {
                    return Err(half);
                }
                match self.hex4()? {
                    second @ 0xdc00..=0xdfff => 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00),
                    _ => return Err(half),
                }
            }
            code => code,
        };
        char::from_u32(code).ok_or(half)
    }

    fn hex4(&mut self) -> Result<u32, Mistake> {
        let mut code = 0;
        for _ in 0..4 {
            let Some(digit) = self.peek().and_then(|c| c.to_digit(16)) else {
                return Err(self.unexpected("one of four hex digits after \\u"));
            };
            self.bump();
            code = code * 16 + digit;
        }
        Ok(code)
    }
}

/// Keeps a quoted word short enough for a message.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn plain(node: &Node) -> serde_json::Value {
        match &node.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(b) => (*b).into(),
            Value::Number(n) => serde_json::from_str(n).unwrap(),
            Value::String(s) => s.clone().into(),
            Value::Array(a) => a.iter().map(plain).collect::<Vec<_>>().into(),
            Value::Object(o) => serde_json::Value::Object(o.iter().map(|m| (m.key.clone(), plain(&m.value))).collect()),
        }
    }

    #[test]
    fn slips_are_named_at_their_place() {
        let cases: &[(&str, usize, usize, &str)] = &[
            ("", 1, 1, "empty"),
            ("  \n ", 1, 1, "empty"),
            ("{\n  // port\n  \"port\": 1}", 2, 3, "comments"),
            ("{} # x", 1, 4, "comments"),
            ("{\n  \"port\": 3000,\n}", 2, 15, "a comma before `}`"),
            ("[1,]", 1, 3, "a comma before `]`"),
            ("{'port': 1}", 1, 2, "double quotes"),
            ("{port: 1}", 1, 2, "key is written in double quotes"),
            ("{\"a\": node}", 1, 7, "\"node\""),
            ("{\"a\" 1}", 1, 6, "`:` after the key `a`"),
            ("{\"a\": 1 \"b\": 2}", 1, 9, "`,` or `}`"),
            ("{\"ä\": \"ö\", x}", 1, 12, "key"),
            ("{\"a\": 1", 1, 8, "the file ends here"),
            ("{\"a\": \"x", 1, 7, "no closing"),
            ("{\"a\": \"x\n\"}", 1, 9, "line break"),
            ("\"\\x\"", 1, 3, "escape"),
            ("\"\\ud800\"", 1, 4, "surrogate"),
            ("01", 1, 2, "zero"),
            ("1.", 1, 3, "a digit"),
            ("1 2", 1, 3, "the end of the file"),
        ];
        for (text, line, column, message) in cases {
            let e = parse(text.as_bytes()).expect_err(text);
            assert_eq!(
                e.at,
                Position {
                    line: *line,
                    column: *column
                },
                "{text:?}: {}",
                e.message
            );
            assert!(e.message.contains(message), "{text:?}: {}", e.message);
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_found() {
        let e = parse(b"{\n \"a\": \"\xff\"}").unwrap_err();
        assert_eq!((e.at.line, e.at.column), (2, 8));
        assert!(parse("\u{feff}{}".as_bytes()).is_ok());
    }

    #[test]
    fn deep_nesting_is_refused_not_overflown() {
        let e = parse("[".repeat(1_000_000).as_bytes()).unwrap_err();
        assert!(e.message.contains("nested"), "{}", e.message);
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            (-1e9..1e9).prop_map(|f: f64| f.into()),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn reads_whatever_serde_json_writes(value in any_json(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            // Read back by serde_json too: its floats may differ from what was written in the last digit.
            let theirs: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(plain(&parse(text.as_bytes()).unwrap()), theirs);
        }

        #[test]
        fn accepts_what_serde_json_accepts(text in r#"[\[\]{}:,"0-9a-ftrunlse.\\ \-+eE]{0,24}"#) {
            // Numbers beyond f64 are serde_json's own limit.
            let theirs = serde_json::from_str::<serde_json::Value>(&text);
            if !theirs.as_ref().is_err_and(|e| e.to_string().contains("out of range")) {
                prop_assert_eq!(parse(text.as_bytes()).is_ok(), theirs.is_ok(), "{}", text);
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(parse(&bytes).is_ok(), serde_json::from_slice::<serde_json::Value>(&bytes).is_ok());
        }
    }
}
