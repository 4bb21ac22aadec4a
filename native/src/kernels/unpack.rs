//! MessagePack as `pack` and msgspec write it, read without building anything.

/// What is no MessagePack, or cut off.
#[derive(Debug, PartialEq, Eq)]
pub struct Torn;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Nil,
    Bool(bool),
    Int(i64),
    /// Above what `Int` holds.
    Large(u64),
    Text(&'a str),
}

pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> Result<&'a [u8], Torn> {
        if n > self.0.len() {
            return Err(Torn);
        }
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        Ok(head)
    }

    fn number(&mut self, size: usize) -> Result<u64, Torn> {
        let bytes = self.bytes(size)?;
        Ok(match *bytes {
            [a] => a.into(),
            [a, b] => u16::from_be_bytes([a, b]).into(),
            [a, b, c, d] => u32::from_be_bytes([a, b, c, d]).into(),
            [a, b, c, d, e, f, g, h] => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            _ => return Err(Torn),
        })
    }

    fn text(&mut self, n: usize) -> Result<Value<'a>, Torn> {
        std::str::from_utf8(self.bytes(n)?).map(Value::Text).map_err(|_| Torn)
    }

    /// The number of items of an array that begins here.
    pub fn array(&mut self) -> Result<usize, Torn> {
        let c = self.bytes(1)?[0];
        self.items(c)
    }

    fn items(&mut self, c: u8) -> Result<usize, Torn> {
        match c {
            0x90..=0x9f => Ok(usize::from(c & 0x0f)),
            0xdc => self.number(2).map(|n| n as usize),
            0xdd => self.number(4).map(|n| n as usize),
            _ => Err(Torn),
        }
    }

    /// One value that is no array.
    pub fn value(&mut self) -> Result<Value<'a>, Torn> {
        let c = self.bytes(1)?[0];
        self.rest(c)
    }

    fn rest(&mut self, c: u8) -> Result<Value<'a>, Torn> {
        let signed = |n: u64, bits: u32| Value::Int((n << (64 - bits)) as i64 >> (64 - bits));
        Ok(match c {
            0x00..=0x7f => Value::Int(c.into()),
            0xa0..=0xbf => self.text(usize::from(c & 0x1f))?,
            0xc0 => Value::Nil,
            0xc2..=0xc3 => Value::Bool(c == 0xc3),
            0xcc..=0xcf => {
                let n = self.number(1 << (c - 0xcc))?;
                i64::try_from(n).map_or(Value::Large(n), Value::Int)
            }
            0xd0..=0xd3 => signed(self.number(1 << (c - 0xd0))?, 8 << (c - 0xd0)),
            0xd9..=0xdb => {
                let n = self.number(1 << (c - 0xd9))?;
                self.text(n as usize)?
            }
            0xe0..=0xff => Value::Int((c as i8).into()),
            _ => return Err(Torn),
        })
    }

    /// An array, or nil: then None.
    pub fn array_or_nil(&mut self) -> Result<Option<usize>, Torn> {
        match self.bytes(1)?[0] {
            0xc0 => Ok(None),
            c => self.items(c).map(Some),
        }
    }

    /// Pass over `n` values, whatever they are. No recursion, however deep they lie: of an array's items only the number
    /// is kept.
    pub fn skip(&mut self, n: usize) -> Result<(), Torn> {
        let mut left = n;
        while left > 0 {
            left -= 1;
            let c = self.bytes(1)?[0];
            if matches!(c, 0x90..=0x9f | 0xdc | 0xdd) {
                left = left.checked_add(self.items(c)?).ok_or(Torn)?;
            } else {
                self.rest(c)?;
            }
        }
        Ok(())
    }
}
