//! How a text is cut: the tokens of BERT's basic tokenizer, WordPiece, and the stem a word is compared by.

use std::borrow::Cow;

use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use super::tables::Tables;

/// With [CLS] and [SEP] 512, what MiniLM reads at most.
pub const MOST_PIECES: usize = 510;
/// Further ones are not looked at: 510 tokens of real text are a third of that.
pub const MOST_CHARACTERS: usize = 8192;
/// BERT takes a longer token for an unknown one.
const MOST_LETTERS: usize = 100;

/// What a character is to the tokenizer. A mark is taken off a letter, as BERT uncased does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Letter,
    Space,
    Sign,
    Alone,
    Mark,
    Nothing,
}

/// One token of the basic tokenizer; `plain` is a range of `Cut::plain`.
pub struct Token {
    pub from: u32,
    pub to: u32,
    /// What was written, if it is a character of punctuation or a symbol of ASCII; else `\0`.
    pub sign: char,
    /// Nothing stands between it and the token before.
    pub glued: bool,
    pub first_upper: bool,
    pub inner_upper: bool,
}

/// The tokens of a text. `plain`: lower case, without accents; what the vocabulary knows.
#[derive(Default)]
pub struct Cut {
    pub plain: String,
    pub tokens: Vec<Token>,
}

impl Cut {
    pub fn plain(&self, token: &Token) -> &str {
        &self.plain[token.from as usize..token.to as usize]
    }
}

fn kind(c: char) -> Kind {
    if c.is_ascii() {
        return match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' => Kind::Letter,
            ' ' | '\t' | '\n' | '\r' => Kind::Space,
            '!'..='~' => Kind::Sign,
            _ => Kind::Nothing,
        };
    }
    use GeneralCategory as G;
    match c.general_category() {
        G::SpaceSeparator => Kind::Space,
        G::Control | G::Format | G::PrivateUse | G::Surrogate => Kind::Nothing,
        _ if c == '\u{fffd}' => Kind::Nothing,
        G::ConnectorPunctuation
        | G::DashPunctuation
        | G::OpenPunctuation
        | G::ClosePunctuation
        | G::InitialPunctuation
        | G::FinalPunctuation
        | G::OtherPunctuation => Kind::Sign,
        _ if matches!(c as u32,
            0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x20000..=0x2A6DF | 0x2A700..=0x2B73F
            | 0x2B740..=0x2B81F | 0x2B820..=0x2CEAF | 0xF900..=0xFAFF | 0x2F800..=0x2FA1F) =>
        {
            Kind::Alone
        }
        G::NonspacingMark => Kind::Mark,
        _ => Kind::Letter,
    }
}

/// NFKC. White space needs no folding: the tokenizer does not see how much there is.
pub fn normalise(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.nfkc().collect())
    }
}

/// The tokens of a normalised text, at most about `most` of them, and whether that was all.
pub fn basic(text: &str, most: usize) -> (Cut, bool) {
    let mut cut = Cut::default();
    cut.plain.reserve(text.len());
    cut.tokens.reserve(text.len() / 4 + 2);
    let mut open = Open::default();
    for c in text.chars() {
        match kind(c) {
            Kind::Letter => {
                open.write(c.is_uppercase());
                if c.is_ascii() {
                    cut.plain.push(c.to_ascii_lowercase());
                } else {
                    for part in std::iter::once(c).nfd() {
                        if part.general_category() != GeneralCategory::NonspacingMark {
                            cut.plain.extend(part.to_lowercase());
                        }
                    }
                }
            }
            Kind::Space => {
                open.close(&mut cut);
                open.glued = false;
            }
            Kind::Sign | Kind::Alone => {
                open.close(&mut cut);
                let sign = kind(c) == Kind::Sign;
                cut.plain.extend(c.to_lowercase());
                let to = cut.plain.len() as u32;
                let (from, glued) = (open.from, open.glued);
                let sign = if sign { c } else { '\0' };
                cut.tokens.push(Token {
                    from,
                    to,
                    sign,
                    glued,
                    first_upper: c.is_uppercase(),
                    inner_upper: false,
                });
                open.from = to;
                open.glued = true;
            }
            Kind::Mark => open.write(c.is_uppercase()),
            Kind::Nothing => {}
        }
        if cut.tokens.len() >= most {
            return (cut, false);
        }
    }
    open.close(&mut cut);
    (cut, true)
}

/// The token that is being read.
#[derive(Default)]
struct Open {
    from: u32,
    glued: bool,
    written: bool,
    first_upper: bool,
    inner_upper: bool,
}

impl Open {
    fn write(&mut self, upper: bool) {
        if self.written {
            self.inner_upper |= upper;
        } else {
            self.written = true;
            self.first_upper = upper;
        }
    }

    fn close(&mut self, cut: &mut Cut) {
        let to = cut.plain.len() as u32;
        if self.written && to > self.from {
            let &mut Self {
                from,
                glued,
                first_upper,
                inner_upper,
                ..
            } = self;
            cut.tokens.push(Token {
                from,
                to,
                sign: '\0',
                glued,
                first_upper,
                inner_upper,
            });
            self.glued = true;
        }
        *self = Self {
            from: to,
            glued: self.glued,
            ..Self::default()
        };
    }
}

/// Adds the WordPiece ids of one token: greedily the longest known piece from the left.
pub fn pieces(plain: &str, tables: &Tables, out: &mut Vec<u16>) {
    let start = out.len();
    if plain.len() > MOST_LETTERS && plain.chars().count() > MOST_LETTERS {
        out.push(tables.unknown);
        return;
    }
    let mut at = 0;
    while at < plain.len() {
        let known = if at == 0 { &tables.heads } else { &tables.tails };
        let mut end = plain.len().min(at + tables.longest);
        loop {
            if plain.is_char_boundary(end) {
                if let Some(&id) = known.get(&plain.as_bytes()[at..end]) {
                    out.push(id);
                    at = end;
                    break;
                }
            }
            end -= 1;
            if end == at {
                out.truncate(start);
                out.push(tables.unknown);
                return;
            }
        }
    }
}

/// The character before the last `skip` ones.
fn from_end(word: &str, skip: usize) -> char {
    word.chars().rev().nth(skip).unwrap_or('\0')
}

/// What is left of an English word without its inflection; words of other languages mostly stay as they are.
pub fn stem(word: &str) -> Cow<'_, str> {
    let mut word = Cow::Borrowed(word);
    let mut letters = if word.is_ascii() {
        word.len()
    } else {
        word.chars().count()
    };
    let drop = |word: &mut Cow<'_, str>, letters: &mut usize, ascii: usize, more: &str| {
        let left = word.len() - ascii;
        match word {
            Cow::Borrowed(borrowed) if more.is_empty() => *borrowed = &borrowed[..left],
            other => {
                let owned = other.to_mut();
                owned.truncate(left);
                owned.push_str(more);
            }
        }
        *letters = *letters - ascii + more.len();
    };
    if letters > 4 && word.ends_with("ies") {
        drop(&mut word, &mut letters, 3, "y");
    } else if letters > 4
        && ["xes", "ches", "shes", "sses", "zes"]
            .iter()
            .any(|end| word.ends_with(end))
    {
        drop(&mut word, &mut letters, 2, "");
    } else if letters > 3 && word.ends_with('s') && !"sui".contains(from_end(&word, 1)) {
        drop(&mut word, &mut letters, 1, "");
    }
    if letters > 5 && word.ends_with("ing") {
        drop(&mut word, &mut letters, 3, "");
    } else if letters > 5 && word.ends_with("ied") {
        drop(&mut word, &mut letters, 3, "y");
    } else if letters > 4 && word.ends_with("ed") && from_end(&word, 2) != 'e' {
        drop(&mut word, &mut letters, 2, "");
    }
    if letters > 3 && word.ends_with('e') {
        drop(&mut word, &mut letters, 1, "");
    }
    let last = from_end(&word, 0);
    if letters > 3 && last == from_end(&word, 1) && last > '9' {
        drop(&mut word, &mut letters, last.len_utf8(), "");
    }
    word
}

pub const FNV: u32 = 0x811C_9DC5;

/// FNV-1a, 32 bits, over UTF-8.
pub fn fnv(text: &str, start: u32) -> u32 {
    text.bytes()
        .fold(start, |value, byte| (value ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
