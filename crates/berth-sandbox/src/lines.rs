//! Cuts a stream of bytes into lines of bounded length.

use crate::logs::MAX_TEXT;

/// Holds the line that is not complete yet.
#[derive(Debug, Default)]
pub(crate) struct LineSplitter {
    rest: Vec<u8>,
}

impl LineSplitter {
    /// Takes in bytes; gives out the lines that are now complete. A line longer than [`MAX_TEXT`] is cut into pieces.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.rest.pop();
                if self.rest.last() == Some(&b'\r') {
                    self.rest.pop();
                }
                self.cut(&mut lines);
                lines.push(text(&self.rest));
                self.rest.clear();
            } else {
                self.cut(&mut lines);
            }
        }
        lines
    }

    /// What there is of an unfinished line.
    pub fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.rest);
        (!rest.is_empty()).then(|| text(&rest))
    }

    fn cut(&mut self, lines: &mut Vec<String>) {
        while self.rest.len() > MAX_TEXT {
            // Not through the middle of a character, where that can be helped.
            let back = (0..4)
                .find(|back| self.rest[MAX_TEXT - back] & 0xC0 != 0x80)
                .unwrap_or(0);
            let tail = self.rest.split_off(MAX_TEXT - back);
            lines.push(text(&self.rest));
            self.rest = tail;
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_come_out_whole_however_they_came_in() {
        let mut splitter = LineSplitter::default();
        assert!(splitter.push(b"hel").is_empty());
        assert_eq!(splitter.push(b"lo\r\n\nwor"), ["hello", ""]);
        assert_eq!(splitter.finish().unwrap(), "wor");
        assert!(splitter.finish().is_none());
    }

    proptest! {
        #[test]
        fn no_line_is_too_long_and_no_character_is_lost(text in "(é|a|\u{1F600}){0,20000}", step in 1usize..9000) {
            let mut splitter = LineSplitter::default();
            let mut out = Vec::new();
            for chunk in text.as_bytes().chunks(step) {
                out.extend(splitter.push(chunk));
            }
            out.extend(splitter.finish());
            prop_assert!(out.iter().all(|line| line.len() <= MAX_TEXT));
            prop_assert_eq!(out.concat(), text);
        }
    }
}
