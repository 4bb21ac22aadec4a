//! The grammar of `json.rs` for texts that are right, which nearly all are, at a quarter of the instructions.
//!
//! Sixty-four bytes at a time it is found out where strings end, and the escapes among them are checked (after Langdale
//! and Lemire, "Parsing Gigabytes of JSON per Second", 2019); between the strings a cursor walks. What it accepts the
//! functions of `json.rs` accept too, and find the same in it. Of the rest it says nothing: whatever it does not like
//! makes it return None, and those are asked.

use super::blocks::{Block, Look, WIDTH};
use super::json::{hex4, MAX_DEPTH};

/// The bits of odd numbers.
const ODD: u64 = 0xaaaa_aaaa_aaaa_aaaa;
const ONES: u64 = 0x0101_0101_0101_0101;

/// A place in a text, and what is known of the block around it.
///
/// The text ends with a closing brace, and `i` is always a place in it: a step is taken only over a byte that is no
/// brace, or over a brace that is not the last byte.
pub struct Cursor<'a, L> {
    b: &'a [u8],
    i: usize,
    look: L,
    /// Where the block begins.
    from: usize,
    /// Of its quotes and control characters those from `i` on, without escaped ones. All of them are in the text.
    ends: u64,
    /// 1 if the first byte behind the block is escaped.
    carry: u64,
    /// Where the `u` of the second half of a surrogate pair is, whose first half was met.
    half: usize,
    /// Where the last character is that is escaped and neither quote nor backslash, in the blocks that were looked at.
    other: usize,
    beyond_ascii: bool,
}

impl<'a, L: Look> Cursor<'a, L> {
    #[inline(always)]
    pub fn new(b: &'a [u8], look: L) -> Option<Self> {
        let last = b.iter().rposition(|c| !matches!(c, b' ' | b'\n' | b'\t' | b'\r'))?;
        if b[last] != b'}' {
            return None;
        }
        let mut cursor = Self {
            b: &b[..=last],
            i: 0,
            look,
            from: 0,
            ends: 0,
            carry: 0,
            half: 0,
            other: 0,
            beyond_ascii: false,
        };
        cursor.load(0)?;
        Some(cursor)
    }

    #[inline(always)]
    pub fn peek(&self) -> u8 {
        debug_assert!(self.i < self.b.len());
        // SAFETY: `i` is a place in `b`, see above.
        unsafe { *self.b.get_unchecked(self.i) }
    }

    /// Step over `C` if it is there.
    #[inline(always)]
    pub fn pass<const C: u8>(&mut self) -> bool {
        const { assert!(C != b'}') };
        // Not `i += usize::from(there)`: rustc 1.95 drops that addition.
        if self.peek() == C {
            self.i += 1;
            true
        } else {
            false
        }
    }

    /// Step over the closing brace at `i` unless it is the last byte.
    #[inline(always)]
    pub fn pass_brace(&mut self) -> Option<()> {
        if self.i + 1 == self.b.len() {
            return None;
        }
        self.i += 1;
        Some(())
    }

    /// Step over white space: mostly there is none, or one space.
    #[inline(always)]
    pub fn blank(&mut self) {
        if self.peek() <= b' ' && (!self.pass::<b' '>() || self.peek() <= b' ') {
            self.blanks();
        }
    }

    #[inline(always)]
    pub fn blanks(&mut self) {
        self.i = blanks(self.b, self.i);
        // Line feeds and tabs are among the ends.
        let off = self.i - self.from;
        self.ends = if off < WIDTH { self.ends >> off << off } else { 0 };
    }

    /// Look at the block that begins at `from`.
    #[inline(always)]
    fn load(&mut self, from: usize) -> Option<()> {
        let mut padded: Block;
        let rest = self.b.get(from..)?;
        let block = match rest.first_chunk::<WIDTH>() {
            Some(block) => block,
            None => {
                padded = [b' '; WIDTH];
                padded[..rest.len()].copy_from_slice(rest);
                &padded
            }
        };
        self.from = from;
        let (ends, slashes) = self.look.ends(block);
        self.ends = ends;
        self.beyond_ascii |= self.look.beyond_ascii(block);
        if slashes | self.carry != 0 {
            // `codes` will be the backslashes that escape, and all else that is escaped: in a run of backslashes every
            // second one escapes, from the first on, and taking away the run's bits leaves those at odd places if it
            // begins at an even one, so that the others are had by turning the bits of the odd places.
            let starts = slashes & !self.carry;
            let codes = (starts << 1 | ODD).wrapping_sub(starts) ^ ODD;
            let escaped = codes ^ (slashes | self.carry);
            self.carry = (codes & slashes) >> 63;
            let others = escaped & !(slashes | self.look.quotes(block));
            if others != 0 {
                self.half = check_escapes(self.b, from, others, self.half)?;
                self.other = from + 63 - others.leading_zeros() as usize;
            }
            self.ends &= !escaped;
        }
        Some(())
    }

    /// Step over a string, whose opening quote is behind the cursor.
    #[inline(always)]
    pub fn text(&mut self) -> Option<()> {
        // The opening quote is the first of the ends, if it is in the block.
        self.ends &= self.ends.wrapping_sub(1);
        if self.ends == 0 {
            let mut from = self.from + WIDTH;
            if self.i > from {
                // What lies between was walked over: nothing is escaped.
                self.carry = 0;
                from = self.i;
            }
            loop {
                self.load(from)?;
                if self.ends != 0 {
                    break;
                }
                from += WIDTH;
            }
        }
        self.i = self.from + self.ends.trailing_zeros() as usize;
        self.ends &= self.ends - 1;
        self.pass::<b'"'>().then_some(())
    }

    /// Step over a key and its colon, to the value. Returns where its text begins and ends.
    #[inline(always)]
    pub fn key(&mut self) -> Option<(usize, usize)> {
        if !self.pass::<b'"'>() {
            return None;
        }
        let from = self.i;
        self.text()?;
        let to = self.i - 1;
        if !self.pass::<b':'>() {
            self.blank();
            if !self.pass::<b':'>() {
                return None;
            }
        }
        self.blank();
        Some((from, to))
    }

    #[inline(always)]
    fn digits(&mut self) -> Option<()> {
        let from = self.i;
        while self.peek().is_ascii_digit() {
            self.i += 1;
        }
        (self.i > from).then_some(())
    }

    /// Step over a number or a word.
    #[inline(always)]
    pub fn scalar(&mut self) -> Option<()> {
        if !matches!(self.peek(), b'-' | b'0'..=b'9') {
            let rest = &self.b[self.i..];
            self.i += match rest.first_chunk::<4>()? {
                b"true" | b"null" => 4,
                b"fals" if rest.get(4) == Some(&b'e') => 5,
                _ => return None,
            };
            return Some(());
        }
        self.pass::<b'-'>();
        if !self.pass::<b'0'>() {
            self.digits()?;
        }
        if self.pass::<b'.'>() {
            self.digits()?;
        }
        if self.pass::<b'e'>() || self.pass::<b'E'>() {
            let _ = self.pass::<b'+'>() || self.pass::<b'-'>();
            self.digits()?;
        }
        Some(())
    }

    /// Step over the value at the cursor, a field of the outermost object.
    #[inline(always)]
    pub fn value(&mut self) -> Option<()> {
        if self.pass::<b'"'>() {
            return self.text();
        }
        if !matches!(self.peek(), b'{' | b'[') {
            return self.scalar();
        }
        // What is open, and around which of them the innermost lies: true for an object.
        let mut around = [false; MAX_DEPTH as usize - 1];
        let mut open = 0;
        let mut object = false;
        loop {
            // A value begins.
            if self.pass::<b'"'>() {
                self.text()?;
            } else if self.pass::<b'{'>() {
                self.blank();
                *around.get_mut(open)? = object;
                open += 1;
                object = true;
                if self.peek() != b'}' {
                    self.key()?;
                    continue;
                }
            } else if self.pass::<b'['>() {
                self.blank();
                *around.get_mut(open)? = object;
                open += 1;
                object = false;
                if self.peek() != b']' {
                    continue;
                }
            } else {
                self.scalar()?;
            }
            // A value has ended, or an empty one is to: close until another begins.
            while !self.pass::<b','>() {
                if object && self.peek() == b'}' {
                    self.pass_brace()?;
                } else if object || !self.pass::<b']'>() {
                    let at = self.i;
                    self.blanks();
                    if self.i == at {
                        return None;
                    }
                    continue;
                }
                open -= 1;
                object = around[open];
                if open == 0 {
                    return Some(());
                }
                self.blank();
            }
            self.blank();
            if object {
                self.key()?;
            }
        }
    }

    /// As `scan` in `scan.rs`.
    #[inline(always)]
    pub fn fields(mut self, names: &[Vec<u8>], spans: &mut [usize]) -> Option<(usize, bool)> {
        spans.fill(usize::MAX);
        self.blank();
        if !self.pass::<b'{'>() {
            return None;
        }
        let inside = self.i;
        self.blank();
        let empty = self.peek() == b'}';
        if !empty {
            loop {
                let (from, to) = self.key()?;
                let start = self.i;
                self.value()?;
                let name = &self.b[from..to];
                if name.contains(&b'\\') {
                    return None; // rare
                }
                if let Some(k) = names.iter().position(|n| n == name) {
                    if spans[2 * k] != usize::MAX {
                        return None;
                    }
                    spans[2 * k] = start;
                    spans[2 * k + 1] = self.i;
                }
                self.blank();
                if !self.pass::<b','>() {
                    break;
                }
                self.blank();
            }
        }
        self.at_end().then_some((inside, empty))
    }

    /// The place in the text.
    #[inline(always)]
    pub fn place(&self) -> usize {
        self.i
    }

    /// Whether a character from `from` on to the cursor may be escaped that is neither quote nor backslash.
    #[inline(always)]
    pub fn has_other_since(&self, from: usize) -> bool {
        self.other >= from
    }

    /// Whether this is the last brace, and the whole text is UTF-8.
    #[inline(always)]
    pub fn at_end(&self) -> bool {
        self.i + 1 == self.b.len() && (!self.beyond_ascii || simdutf8::basic::from_utf8(self.b).is_ok())
    }
}

/// The end of white space at `i`; at most the last byte of `b`, which is none.
#[cold]
fn blanks(b: &[u8], mut i: usize) -> usize {
    loop {
        if let Some(eight) = b[i..].first_chunk::<8>() {
            let others = u64::from_le_bytes(*eight) ^ (ONES * 0x20);
            i += (others.trailing_zeros() / 8) as usize;
            if others == 0 {
                continue;
            }
        }
        if !matches!(b[i], b' ' | b'\n' | b'\t' | b'\r') {
            return i;
        }
        i += 1;
    }
}

/// Check what is escaped at `others` in the block at `from`, which are neither quotes nor backslashes. `half` is the
/// place of the `u` of a second half that is awaited; returns that behind the block.
#[cold]
fn check_escapes(b: &[u8], from: usize, mut others: u64, mut half: usize) -> Option<usize> {
    while others != 0 {
        let at = from + others.trailing_zeros() as usize;
        others &= others - 1;
        match b.get(at)? {
            b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
            b'u' => match hex4(b, at + 1).ok()? {
                0xD800..=0xDBFF => {
                    half = at + 6;
                    let paired = b.get(at + 5) == Some(&b'\\')
                        && b.get(half) == Some(&b'u')
                        && (0xDC00..0xE000).contains(&hex4(b, half + 1).ok()?);
                    if !paired {
                        return None;
                    }
                }
                0xDC00..=0xDFFF if at != half => return None,
                _ => {}
            },
            _ => return None,
        }
    }
    Some(half)
}
