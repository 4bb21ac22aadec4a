//! From tokens to words: numbers, units, names, negations and the ways of asking, as the lexicon's lists know them.

use super::lists::Lists;
use super::word::{Word, ASKED, IDENT, NAME, NUMBER, ORDINAL, STOP, UNIT};
use super::words::{fnv, stem, Cut, Token};

/// An ask that says nothing: "can you tell me".
const FILLER: u8 = 255;
const LONGEST_ASK: usize = 9;
const APOSTROPHES: &str = "'\u{2019}`";
/// A text with one of them is taken for code: its signs have to be the same.
const CODE: &str = "={}<>\\|^~_[]+*";
/// And these count then.
const SIGNS: &str = "={}<>\\|^~_[]+*&@#%/-();:$";
const PREFIXES: [&str; 8] = ["un", "in", "im", "dis", "non", "ir", "il", "mis"];

type Span = (usize, usize);

fn money(plain: &str) -> Option<(&'static str, usize)> {
    let first = plain.chars().next()?;
    let unit = match first {
        '$' => "dollar",
        '€' => "euro",
        '£' => "gbp",
        '¥' => "yen",
        '₹' => "rupee",
        _ => return None,
    };
    Some((unit, first.len_utf8()))
}

fn contracted(tail: &str) -> Option<&'static str> {
    Some(match tail {
        "m" | "re" => "is",
        "ve" => "have",
        "ll" => "will",
        "d" => "would",
        _ => return None,
    })
}

fn is_after(plain: &str) -> bool {
    matches!(
        plain,
        "what" | "how" | "where" | "who" | "when" | "why" | "that" | "it" | "there" | "he" | "she" | "here" | "which"
    )
}

fn digits(plain: &str) -> usize {
    plain.bytes().take_while(u8::is_ascii_digit).count()
}

/// A hash over the code spans of a text as it was written: fenced, or between single backticks. 0: no code.
pub fn code_of(text: &str) -> u32 {
    if !text.contains('`') {
        return 0;
    }
    let mut found = 0;
    for (i, part) in text.split("```").enumerate() {
        if i % 2 == 1 {
            found = fnv("\0", fnv(part, found));
        } else {
            let spans: Vec<&str> = part.split('`').collect();
            for span in spans[..spans.len() - 1].iter().skip(1).step_by(2) {
                found = fnv("\0", fnv(span, found));
            }
        }
    }
    found
}

/// Walks the tokens of one text once; its fields are what `Text` keeps.
pub struct Reading<'a> {
    lists: &'a Lists,
    ids: &'a [u16],
    idf: &'a [u8],
    cut: &'a Cut,
    spans: &'a [Span],
    pub words: Vec<Word>,
    /// The hash of each word's stem and a blank continues that of the words before it: so stems are kept as text.
    stems: String,
    ends: Vec<u32>,
    starts: Vec<usize>,
    pub signs: u32,
    pub looks_like_code: bool,
    pub sentences: u32,
    pub questions: u32,
    pub asks: u8,
}

impl<'a> Reading<'a> {
    pub fn new(lists: &'a Lists, idf: &'a [u8], cut: &'a Cut, spans: &'a [Span], ids: &'a [u16]) -> Self {
        let room = spans.len() + 4;
        Self {
            lists,
            ids,
            idf,
            cut,
            spans,
            words: Vec::with_capacity(room),
            stems: String::with_capacity(cut.plain.len() + 16),
            ends: Vec::with_capacity(room),
            starts: Vec::new(),
            signs: 0,
            looks_like_code: false,
            sentences: 0,
            questions: 0,
            asks: 0,
        }
    }

    fn token(&self, at: usize) -> Option<&'a Token> {
        if at < self.spans.len() {
            Some(&self.cut.tokens[at])
        } else {
            None
        }
    }

    pub fn read(&mut self) {
        // Whether the next word starts a sentence.
        let mut fresh = true;
        let mut at = 0;
        while let Some(token) = self.token(at) {
            if token.sign != '\0' {
                fresh |= self.sign(token.sign, at);
                at += 1;
                continue;
            }
            if fresh {
                self.starts.push(self.words.len());
                self.sentences += 1;
            }
            let plain = self.cut.plain(token);
            let priced = money(plain).is_some_and(|(_, size)| plain.len() > size);
            at = if priced || digits(plain) > 0 {
                self.number(at)
            } else {
                self.word(at, fresh)
            };
            fresh = false;
        }
        let names = self.words.iter().filter(|word| word.is(NAME)).count();
        if names > 2 && names * 5 > self.words.len() * 3 {
            // Written Like A Title: that says nothing.
            self.words.iter_mut().for_each(|word| word.flags &= !NAME);
        }
        for start in std::mem::take(&mut self.starts) {
            self.ask(start);
        }
    }

    /// Whether the sentence ends here.
    fn sign(&mut self, sign: char, at: usize) -> bool {
        self.looks_like_code |= CODE.contains(sign);
        if SIGNS.contains(sign) {
            let mut room = [0; 4];
            self.signs = fnv(
                sign.encode_utf8(&mut room),
                if self.signs == 0 { 1 } else { self.signs },
            );
        }
        self.questions += u32::from(sign == '?');
        if sign == '%' && self.words.last().is_some_and(|word| word.is(NUMBER)) {
            self.add("percent", (0, 0), false);
        } else if sign == '$' {
            self.add("dollar", (0, 0), false);
        }
        sign == '?' || sign == '!' || (sign == '.' && !self.token(at + 1).is_some_and(|next| next.glued))
    }

    fn number(&mut self, mut at: usize) -> usize {
        let (first, mut count) = self.spans[at];
        let mut plain = self.cut.plain(&self.cut.tokens[at]);
        if let Some((unit, size)) = money(plain) {
            self.add(unit, (0, 0), false);
            plain = &plain[size..];
        }
        let end = digits(plain);
        let mut value = String::from(&plain[..end]);
        let mut rest = &plain[end..];
        at += 1;
        while rest.is_empty() && !value.is_empty() {
            let (Some(sign), Some(next)) = (self.token(at), self.token(at + 1)) else {
                break;
            };
            if !sign.glued || !next.glued {
                break;
            }
            let more = self.cut.plain(next);
            let end = digits(more);
            match sign.sign {
                '.' | ':' if end > 0 => value.push(sign.sign),
                ',' if end == 3 => {}
                _ => break,
            }
            value.push_str(&more[..end]);
            rest = &more[end..];
            count += self.spans[at].1 + self.spans[at + 1].1;
            at += 2;
        }
        let span = (first, count);
        if value.is_empty() || (!rest.is_empty() && !self.suffix(&value, rest, span)) {
            value.push_str(rest);
            self.put(&value, &value, span, IDENT, 0, 0);
        } else if rest.is_empty() {
            let key = format!("={}", plain_number(&value));
            self.put(&key, &value, span, NUMBER, 0, 0);
        }
        at
    }

    /// A number with letters on it; false when it is no number but a name such as 4g.
    fn suffix(&mut self, value: &str, rest: &str, span: Span) -> bool {
        match rest {
            "st" | "nd" | "rd" | "th" => self.put(&format!("#{value}"), value, span, ORDINAL, 0, 0),
            "k" | "m" | "bn" | "b" | "s" => self.put(&format!("={value}{rest}"), value, span, NUMBER, 0, 0),
            _ => {
                if self.lists.entries[self.lists.place(&stem(rest))].flags & UNIT == 0 {
                    return false;
                }
                self.put(&format!("={}", plain_number(value)), value, span, NUMBER, 0, 0);
                self.add(rest, (0, 0), false);
            }
        }
        true
    }

    fn word(&mut self, mut at: usize, fresh: bool) -> usize {
        let token = &self.cut.tokens[at];
        let (first, mut count) = self.spans[at];
        let mut plain = std::borrow::Cow::Borrowed(self.cut.plain(token));
        let mut letters = plain.chars().take(6).count();
        at += 1;
        // c++, c#
        while let Some(next) = self
            .token(at)
            .filter(|next| next.glued && "+#".contains(next.sign) && letters <= 4)
        {
            plain.to_mut().push(next.sign);
            letters += 1;
            count += self.spans[at].1;
            at += 1;
        }
        let lists = self.lists;
        let mut tail = match (self.token(at), self.token(at + 1)) {
            (Some(sign), Some(next)) if sign.glued && next.glued && APOSTROPHES.contains(sign.sign) => {
                self.cut.plain(next)
            }
            _ => "",
        };
        let joined = if tail.is_empty() || tail == "s" {
            None
        } else {
            Some(format!("{plain}{tail}"))
        };
        if joined
            .as_ref()
            .is_some_and(|joined| lists.spelt.contains_key(joined.as_bytes()))
        {
            plain.to_mut().push_str(tail);
        } else if tail == "s" {
            tail = match &*plain {
                "let" => "us",
                word if is_after(word) => "is",
                _ => "s",
            };
        } else {
            tail = contracted(tail).unwrap_or("");
        }
        let named = (!fresh && token.first_upper) || token.inner_upper;
        if let Some(meant) = lists.spelt.get(plain.as_bytes()) {
            for (i, word) in meant.iter().enumerate() {
                self.add(word, (first, if i == 0 { count } else { 0 }), named);
            }
        } else {
            self.add(&plain, (first, count), named);
        }
        if !tail.is_empty() {
            at += 2;
            if matches!(tail, "is" | "us" | "have" | "will" | "would") {
                match lists.spelt.get(tail.as_bytes()) {
                    Some(meant) => meant.iter().for_each(|word| self.add(word, (0, 0), false)),
                    None => self.add(tail, (0, 0), false),
                }
            }
        }
        at
    }

    fn add(&mut self, plain: &str, span: Span, named: bool) {
        let root = stem(plain);
        let place = self.lists.place(&root);
        let entry = &self.lists.entries[place];
        let mut flags = entry.flags;
        if named && flags & STOP == 0 {
            flags |= NAME;
        }
        if plain.bytes().any(|byte| byte.is_ascii_digit()) {
            flags |= IDENT;
        }
        let mut base = 0;
        if flags & STOP == 0 {
            let prefix = PREFIXES
                .iter()
                .find(|prefix| plain.starts_with(*prefix) && plain[prefix.len()..].chars().take(4).count() == 4);
            base = prefix.map_or(0, |prefix| fnv(&stem(&plain[prefix.len()..]), super::words::FNV));
        }
        let key = if entry.stands_for.is_empty() {
            &*root
        } else {
            &*entry.stands_for
        };
        self.put(key, &root, span, flags, place, base);
    }

    fn put(&mut self, key: &str, root: &str, (first, count): Span, flags: u16, place: usize, base: u32) {
        let idf = match count {
            0 => 0,
            1 => self.idf[usize::from(self.ids[first])],
            _ => 255,
        };
        let key = fnv(key, super::words::FNV);
        self.words.push(Word {
            key,
            base,
            entry: place as u16,
            flags,
            first: first as u16,
            count: count as u16,
            idf,
        });
        self.stems.push_str(root);
        self.stems.push(' ');
        self.ends.push(self.stems.len() as u32);
    }

    /// Marks the words by which the sentence at `start` asks; fillers before them too.
    fn ask(&mut self, mut start: usize) {
        while start < self.words.len() {
            let (mut key, mut best, mut length) = (0, 0, 0);
            let mut from = if start == 0 { 0 } else { self.ends[start - 1] as usize };
            for i in start..(start + LONGEST_ASK).min(self.words.len()) {
                let to = self.ends[i] as usize;
                key = fnv(&self.stems[from..to], key);
                from = to;
                if let Some(&found) = self.lists.asked.get(&key) {
                    (best, length) = (found, i + 1 - start);
                }
            }
            for word in &mut self.words[start..start + length] {
                word.flags |= ASKED;
            }
            if best != 0 && best != FILLER && self.asks == 0 {
                self.asks = best;
            }
            if best != FILLER {
                return;
            }
            start += length;
        }
    }
}

/// 05 and 5, 3.50 and 3.5 are the same number.
fn plain_number(value: &str) -> String {
    let mut value = value.trim_start_matches('0').to_string();
    if value.is_empty() || value.starts_with(['.', ':']) {
        value.insert(0, '0');
    }
    if value.contains('.') && !value.contains(':') {
        value.truncate(value.trim_end_matches('0').len());
        value.truncate(value.trim_end_matches('.').len());
    }
    value
}
