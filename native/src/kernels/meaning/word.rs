//! One word of a text and what kind of word it is.

// Classes of a word: the first ten come from the lexicon's lists, the others from how it is written and where.
pub const STOP: u16 = 1;
pub const NEGATION: u16 = 1 << 1;
pub const DATE: u16 = 1 << 2;
pub const UNIT: u16 = 1 << 3;
pub const ORDINAL: u16 = 1 << 4;
pub const PRONOUN: u16 = 1 << 5;
pub const RELATION: u16 = 1 << 6;
pub const MODAL: u16 = 1 << 7;
pub const QUANTITY: u16 = 1 << 8;
pub const NUMBER: u16 = 1 << 9;
pub const NAME: u16 = 1 << 10;
pub const IDENT: u16 = 1 << 11;
pub const ASKED: u16 = 1 << 12;

/// One word of a text.
#[derive(Clone, Copy)]
pub struct Word {
    /// Hash of the stem; equal for what counts as the same word.
    pub key: u32,
    /// Hash of what is left without a negating prefix, else 0.
    pub base: u32,
    /// Its line in the lexicon, 0: none.
    pub entry: u16,
    pub flags: u16,
    /// Its tokens are `ids[first..first + count]`.
    pub first: u16,
    pub count: u16,
    /// 0..=255
    pub idf: u8,
}

impl Word {
    pub fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub fn is_content(&self) -> bool {
        !self.is(STOP | ASKED)
    }

    /// Whether it matters where it stands: who does what to whom.
    pub fn is_placed(&self) -> bool {
        self.is_content() || (self.is(PRONOUN | QUANTITY | NEGATION) && !self.is(ASKED))
    }
}
