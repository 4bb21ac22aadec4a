//! MessagePack as `pack` and msgspec write it, read without building anything.

/// What is no MessagePack, or cut off.
#[derive(Debug, PartialEq, Eq)]
pub struct Torn;

/// UTF-8. `plain`: ASCII that stands in JSON as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'a> {
    pub bytes: &'a [u8],
    pub plain: bool,
}

impl<'a> Text<'a> {
    pub const EMPTY: Self = Self {
        bytes: b"",
        plain: true,
    };

    #[inline]
    fn new(bytes: &'a [u8]) -> Result<Self, Torn> {
        if bytes.is_empty() {
            return Ok(Self::EMPTY);
        }
        let plain = is_plain(bytes);
        if !plain && std::str::from_utf8(bytes).is_err() {
            return Err(Torn);
        }
        Ok(Self { bytes, plain })
    }

    pub fn is(&self, text: &str) -> bool {
        self.bytes == text.as_bytes()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Neither control characters nor quotes, backslashes or anything beyond ASCII. Eight bytes at a time: names are short,
/// and there are twenty in a record.
fn is_plain(bytes: &[u8]) -> bool {
    const ONES: u64 = u64::MAX / 255;
    // In every byte of one's highest bit: below 0x20, beyond ASCII, or equal to one of two (it is exact as to whether
    // there is any, which is all that is asked).
    let odd = |word: u64| {
        let is = |c: u8| (word ^ (ONES * u64::from(c))).wrapping_sub(ONES);
        let low = word.wrapping_sub(ONES * 0x20);
        (low | is(b'"') | is(b'\\') | word) & (ONES * 0x80)
    };
    let n = bytes.len();
    if let Some(last) = bytes.last_chunk::<8>() {
        let all = bytes
            .chunks_exact(8)
            .fold(odd(u64::from_le_bytes(*last)), |seen, word| {
                let mut whole = [0; 8];
                whole.copy_from_slice(word);
                seen | odd(u64::from_le_bytes(whole))
            });
        return all == 0;
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        let (first, last) = (u32::from_le_bytes(*first), u32::from_le_bytes(*last));
        return odd(u64::from(first) << 32 | u64::from(last)) == 0;
    }
    n == 0
        || odd(u64::from_le_bytes([
            bytes[0],
            bytes[n / 2],
            bytes[n - 1],
            b'.',
            b'.',
            b'.',
            b'.',
            b'.',
        ])) == 0
}

/// Reads what it expects. Every method takes one value off the front, or none and says so.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    #[inline]
    fn byte(&mut self) -> Result<u8, Torn> {
        self.chunk::<1>().map(|[c]| c)
    }

    #[inline]
    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], Torn> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Torn)?;
        self.0 = rest;
        Ok(*head)
    }

    #[inline]
    fn bytes(&mut self, n: usize) -> Result<&'a [u8], Torn> {
        if n > self.0.len() {
            return Err(Torn);
        }
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        Ok(head)
    }

    #[inline]
    pub fn text(&mut self) -> Result<Text<'a>, Torn> {
        let c = self.byte()?;
        Text::new(self.text_bytes(c)?)
    }

    #[inline]
    fn text_bytes(&mut self, c: u8) -> Result<&'a [u8], Torn> {
        let n = match c {
            0xa0..=0xbf => usize::from(c & 0x1f),
            0xd9 => usize::from(self.byte()?),
            0xda => usize::from(u16::from_be_bytes(self.chunk()?)),
            0xdb => u32::from_be_bytes(self.chunk()?) as usize,
            _ => return Err(Torn),
        };
        self.bytes(n)
    }

    #[inline]
    pub fn int(&mut self) -> Result<i64, Torn> {
        Ok(match self.byte()? {
            c @ 0x00..=0x7f => c.into(),
            0xcc => self.byte()?.into(),
            0xcd => u16::from_be_bytes(self.chunk()?).into(),
            0xce => u32::from_be_bytes(self.chunk()?).into(),
            0xcf => i64::try_from(u64::from_be_bytes(self.chunk()?)).map_err(|_| Torn)?,
            0xd0 => i8::from_be_bytes(self.chunk()?).into(),
            0xd1 => i16::from_be_bytes(self.chunk()?).into(),
            0xd2 => i32::from_be_bytes(self.chunk()?).into(),
            0xd3 => i64::from_be_bytes(self.chunk()?),
            c @ 0xe0..=0xff => (c as i8).into(),
            _ => return Err(Torn),
        })
    }

    /// A whole number that may be larger than `int` holds: so much, and whether it is below zero.
    pub fn amount(&mut self) -> Result<(u64, bool), Torn> {
        if self.0.first() == Some(&0xcf) {
            self.byte()?;
            return Ok((u64::from_be_bytes(self.chunk()?), false));
        }
        let n = self.int()?;
        Ok((n.unsigned_abs(), n < 0))
    }

    pub fn truth(&mut self) -> Result<bool, Torn> {
        match self.byte()? {
            0xc2 => Ok(false),
            0xc3 => Ok(true),
            _ => Err(Torn),
        }
    }

    /// The number of items of an array that begins here.
    pub fn array(&mut self) -> Result<usize, Torn> {
        let c = self.byte()?;
        self.items(c)
    }

    fn items(&mut self, c: u8) -> Result<usize, Torn> {
        match c {
            0x90..=0x9f => Ok(usize::from(c & 0x0f)),
            0xdc => self.chunk().map(|n| u16::from_be_bytes(n).into()),
            0xdd => self.chunk().map(|n| u32::from_be_bytes(n) as usize),
            _ => Err(Torn),
        }
    }

    /// An array, or nil: then None.
    pub fn array_or_nil(&mut self) -> Result<Option<usize>, Torn> {
        match self.byte()? {
            0xc0 => Ok(None),
            c => self.items(c).map(Some),
        }
    }

    /// Pass over `n` values, whatever they are. No recursion, however deep they lie: of an array's items only the number
    /// is kept.
    pub fn skip(&mut self, n: usize) -> Result<(), Torn> {
        let mut left = n;
        let mut r = Self(self.0); // of its own: it stays in registers
        while left > 0 {
            left -= 1;
            match r.byte()? {
                0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => {}
                c @ 0xcc..=0xd3 => {
                    r.bytes(1 << (c & 3))?;
                }
                c @ (0x90..=0x9f | 0xdc | 0xdd) => left = left.checked_add(r.items(c)?).ok_or(Torn)?,
                c => {
                    let text = r.text_bytes(c)?;
                    if !text.is_ascii() && std::str::from_utf8(text).is_err() {
                        return Err(Torn);
                    }
                }
            }
        }
        self.0 = r.0;
        Ok(())
    }
}
