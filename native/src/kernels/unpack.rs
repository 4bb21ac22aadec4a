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
    /// So many items, and where they begin.
    Items(usize, &'a [u8]),
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
        Ok(bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    fn text(&mut self, n: usize) -> Result<Value<'a>, Torn> {
        std::str::from_utf8(self.bytes(n)?).map(Value::Text).map_err(|_| Torn)
    }

    fn items(&mut self, n: usize) -> Result<Value<'a>, Torn> {
        let begin = self.0;
        let mut left = n;
        while left > 0 {
            left -= 1;
            // Of those in it only the number is asked: no recursion, however deep they lie.
            left = left.checked_add(self.enter()?).ok_or(Torn)?;
        }
        Ok(Value::Items(n, begin))
    }

    /// Pass over one value, but only into an array: how many items follow.
    fn enter(&mut self) -> Result<usize, Torn> {
        if let Some(n) = self.array()? {
            return Ok(n);
        }
        self.value().map(|_| 0)
    }

    /// The number of items if an array begins here; else nothing is passed over.
    fn array(&mut self) -> Result<Option<usize>, Torn> {
        let size = match *self.0.first().ok_or(Torn)? {
            c @ 0x90..=0x9f => {
                self.bytes(1)?;
                return Ok(Some(usize::from(c & 0x0f)));
            }
            0xdc => 2,
            0xdd => 4,
            _ => return Ok(None),
        };
        self.bytes(1)?;
        self.number(size).map(|n| Some(n as usize))
    }

    pub fn value(&mut self) -> Result<Value<'a>, Torn> {
        if let Some(n) = self.array()? {
            return self.items(n);
        }
        let signed = |n: u64, bits: u32| Value::Int((n << (64 - bits)) as i64 >> (64 - bits));
        Ok(match self.bytes(1)?[0] {
            c @ 0x00..=0x7f => Value::Int(c.into()),
            c @ 0xa0..=0xbf => self.text(usize::from(c & 0x1f))?,
            0xc0 => Value::Nil,
            c @ 0xc2..=0xc3 => Value::Bool(c == 0xc3),
            c @ 0xcc..=0xcf => {
                let n = self.number(1 << (c - 0xcc))?;
                i64::try_from(n).map_or(Value::Large(n), Value::Int)
            }
            c @ 0xd0..=0xd3 => signed(self.number(1 << (c - 0xd0))?, 8 << (c - 0xd0)),
            c @ 0xd9..=0xdb => {
                let n = self.number(1 << (c - 0xd9))?;
                self.text(n as usize)?
            }
            c @ 0xe0..=0xff => Value::Int((c as i8).into()),
            _ => return Err(Torn),
        })
    }
}
