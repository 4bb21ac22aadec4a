//! The short way for chunks that are like the one before.

use super::super::json::string;

/// What stands around the text in the chunks of this stream: providers repeat it to the byte, and it is most of a chunk.
/// One that has both around a valid JSON string is as valid as the one they were taken from, and says the same.
#[derive(Debug, Default)]
pub struct Like {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Like {
    /// The text of a chunk that differs from the one before in nothing else, and whether it has escapes.
    pub fn read<'a>(&self, data: &'a [u8]) -> Option<(&'a [u8], bool)> {
        let (before, after) = (self.before.as_slice(), self.after.as_slice());
        let fits = !before.is_empty()
            && data.len() > before.len() + after.len()
            && data.starts_with(before)
            && data.ends_with(after);
        if !fits {
            return None;
        }
        // `before` ends with the quote that opens the text, `after` begins with the one that closes it.
        let (from, to) = (before.len(), data.len() - after.len());
        let text = &data[from..to];
        match string(data, from) {
            Ok((end, escaped)) if end == to + 1 && simdutf8::basic::from_utf8(text).is_ok() => Some((text, escaped)),
            _ => None,
        }
    }

    pub fn set(&mut self, before: &[u8], after: &[u8]) {
        if self.before != before || self.after != after {
            self.before.clear();
            self.before.extend_from_slice(before);
            self.after.clear();
            self.after.extend_from_slice(after);
        }
    }
}
