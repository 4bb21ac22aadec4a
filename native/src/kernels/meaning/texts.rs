//! A text as its words, ready to be compared.

use std::sync::Arc;

use super::signs::{code_of, Reading};
use super::tables::Tables;
use super::word::Word;
use super::words::{basic, normalise, pieces, MOST_CHARACTERS, MOST_PIECES};

pub struct Text {
    pub tables: Arc<Tables>,
    pub ids: Box<[u16]>,
    pub words: Box<[Word]>,
    /// Places by key, then by place: matching two texts is one walk over both.
    pub order: Box<[u16]>,
    /// A hash over the code in it, 0: none. Code outside of spans is known by its signs, which then have to be equal.
    pub code: u32,
    pub sentences: u32,
    pub questions: u32,
    pub content: u32,
    /// With [CLS] and [SEP]; 513 when the text was cut.
    pub tokens: u32,
    /// The way of asking, 0: none known.
    pub asks: u8,
}

impl Text {
    pub fn read(tables: &Arc<Tables>, text: &str) -> Self {
        let short = text
            .char_indices()
            .nth(MOST_CHARACTERS)
            .map_or(text, |(at, _)| &text[..at]);
        let (cut, mut whole) = basic(&normalise(short), MOST_PIECES + 1);
        whole &= short.len() == text.len();
        let mut ids = Vec::with_capacity(cut.tokens.len() * 2);
        let mut spans = Vec::with_capacity(cut.tokens.len());
        for token in &cut.tokens {
            let from = ids.len();
            pieces(cut.plain(token), tables, &mut ids);
            if ids.len() > MOST_PIECES {
                ids.truncate(from);
                whole = false;
                break;
            }
            spans.push((from, ids.len() - from));
        }
        let mut reading = Reading::new(&tables.lists, &tables.idf, &cut, &spans, &ids);
        reading.read();
        let mut code = code_of(short);
        if reading.looks_like_code {
            code = (code ^ reading.signs).max(1);
        }
        let (sentences, questions, asks) = (reading.sentences, reading.questions, reading.asks);
        let words = std::mem::take(&mut reading.words).into_boxed_slice();
        let mut order: Box<[u16]> = (0..words.len() as u16).collect();
        order.sort_unstable_by_key(|&i| (words[usize::from(i)].key, i));
        Self {
            tables: Arc::clone(tables),
            content: words.iter().filter(|word| word.is_content()).count() as u32,
            tokens: if whole { ids.len() as u32 + 2 } else { 513 },
            ids: ids.into_boxed_slice(),
            words,
            order,
            code,
            sentences,
            questions,
            asks,
        }
    }
}
