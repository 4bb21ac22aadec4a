//! What two texts have in common and what sets them apart, as numbers. It is the same whichever of the two came first.

use super::tables::Meaning;
use super::texts::Text;
use super::word::{
    Word, ASKED, DATE, IDENT, MODAL, NAME, NEGATION, NUMBER, ORDINAL, PRONOUN, QUANTITY, RELATION, STOP, UNIT,
};

#[rustfmt::skip]
pub const NAMES: [&str; 54] = [
    "cosine", "deep",
    "shared", "shared_all", "cover_lo", "cover_hi", "bigrams", "bigrams_all",
    "alone_lo", "alone_hi", "rarest_lo", "rarest_hi", "weight_lo", "weight_hi",
    "near_mean", "near_lo", "near_hi", "swap_near",
    "synonyms", "moved", "moved_all", "breaks", "breaks_all", "swapped", "roles", "first_same", "last_same",
    "numbers", "numbers_one", "numbers_same", "ordinals", "dates", "units", "negations", "negations_off",
    "opposites", "names", "names_weight", "names_both", "idents", "code",
    "ask_same", "ask_off", "pronouns", "relations", "modals", "quantities", "small",
    "content_lo", "content_off", "length_off", "questions_off", "sentences_off", "verbatim",
];
pub type Numbers = [f64; NAMES.len()];
#[rustfmt::skip]
const VETOES: [&str; 11] = [
    "numbers", "ordinals", "dates", "units", "negations_off", "opposites", "idents", "code", "roles", "swapped", "ask_off",
];
/// Words of a side that are compared by meaning; with more left over it is a miss anyway.
const MOST_NEAR: usize = 16;

/// Whether the strict profile gives nothing for such a pair, whatever the trees say.
pub fn is_refused(numbers: &Numbers) -> bool {
    NAMES
        .iter()
        .zip(numbers)
        .any(|(name, &number)| number != 0.0 && VETOES.contains(name))
}

/// Which word of `new` is which of `kept`, every word at most once, equal ones in their order; by place in `new`.
fn matches(new: &Text, kept: &Text) -> Vec<(u16, u16)> {
    let mut out = Vec::with_capacity(new.words.len().min(kept.words.len()));
    let (mut i, mut j) = (0, 0);
    while i < new.order.len() && j < kept.order.len() {
        let (one, other) = (new.order[i], kept.order[j]);
        let (a, b) = (new.words[usize::from(one)].key, kept.words[usize::from(other)].key);
        if a == b {
            out.push((one, other));
        }
        i += usize::from(a <= b);
        j += usize::from(b <= a);
    }
    out.sort_unstable();
    out
}

/// The length of the longest rising subsequence: how many words kept their order.
fn longest_run(places: &[u16]) -> usize {
    let mut tails: Vec<u16> = Vec::with_capacity(places.len());
    for &place in places {
        match tails.partition_point(|&tail| tail < place) {
            at if at < tails.len() => tails[at] = place,
            _ => tails.push(place),
        }
    }
    tails.len()
}

/// How often neighbours among the shared words are none in the other text. A part that moves to the front breaks the
/// order once, words that change places break it more often unless little else is shared.
fn breaks(places: &[u16]) -> usize {
    let mut sorted = places.to_vec();
    sorted.sort_unstable();
    let follows = |a: u16, b: u16| {
        sorted
            .binary_search(&a)
            .is_ok_and(|rank| sorted.get(rank + 1) == Some(&b))
    };
    places.windows(2).filter(|pair| !follows(pair[0], pair[1])).count()
}

fn bigrams<'a>(words: impl Iterator<Item = &'a Word>) -> Vec<u64> {
    let mut out = Vec::new();
    let mut last = None;
    for word in words {
        if let Some(last) = last.replace(word.key) {
            out.push(u64::from(last) << 32 | u64::from(word.key));
        }
    }
    out.sort_unstable();
    out
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole != 0.0 {
        part / whole
    } else {
        1.0
    }
}

/// The Jaccard index of two sorted multisets; 1 when both are empty.
fn overlap(one: &[u64], other: &[u64]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0);
    while i < one.len() && j < other.len() {
        let (a, b) = (one[i], other[j]);
        both += usize::from(a == b);
        i += usize::from(a <= b);
        j += usize::from(b <= a);
    }
    ratio(both as f64, (one.len() + other.len() - both) as f64)
}

/// For each content word the relation word (from, to, of) that stands before it with no content word between, or 0.
fn governors(words: &[Word]) -> Vec<u32> {
    let mut last = 0;
    let governor = |word: &Word| {
        if word.is_content() {
            return std::mem::take(&mut last);
        }
        if word.is(RELATION) {
            last = word.key;
        }
        0
    };
    words.iter().map(governor).collect()
}

/// How many words changed places with one another: from Paris to Rome, from Rome to Paris.
fn roles(new: &Text, kept: &Text, pairs: &[(u16, u16)]) -> usize {
    let (one, other) = (governors(&new.words), governors(&kept.words));
    let sides = |&(i, j): &(u16, u16)| (one[usize::from(i)], other[usize::from(j)]);
    let changed: Vec<(u32, u32)> = pairs
        .iter()
        .map(sides)
        .filter(|&(a, b)| a != 0 && b != 0 && a != b)
        .collect();
    changed
        .iter()
        .filter(|&&(here, there)| changed.contains(&(there, here)))
        .count()
}

fn count(words: &[&Word], flag: u16) -> usize {
    words.iter().filter(|word| word.is(flag)).count()
}

fn alone(text: &Text, matched: impl Iterator<Item = u16>) -> Vec<&Word> {
    let mut found = vec![false; text.words.len()];
    matched.for_each(|i| found[usize::from(i)] = true);
    text.words
        .iter()
        .zip(found)
        .filter(|(_, found)| !found)
        .map(|(word, _)| word)
        .collect()
}

/// Takes synonyms out of both lists and counts them.
fn pair_off(new: &Text, own: &mut Vec<&Word>, other: &mut Vec<&Word>) -> usize {
    let before = own.len();
    own.retain(|word| {
        if !word.is_content() || word.is(NUMBER | ORDINAL | UNIT | DATE) {
            return true;
        }
        let fit = |candidate: &&Word| candidate.is_content() && new.tables.lists.like(word, candidate);
        match other.iter().position(fit) {
            Some(at) => {
                other.remove(at);
                false
            }
            None => true,
        }
    });
    before - own.len()
}

fn meanings(text: &Text, words: &[&Word], most: usize) -> Vec<Meaning> {
    words
        .iter()
        .take(most)
        .map(|word| text.tables.meaning(&text.ids, word))
        .collect()
}

fn nearest(own: &Meaning, others: &[Meaning]) -> f64 {
    others.iter().fold(0.0, |best, other| own.likeness(other).max(best))
}

/// Fills the numbers one after another.
struct Pen {
    numbers: Numbers,
    at: usize,
}

impl Pen {
    fn put(&mut self, number: f64) {
        self.numbers[self.at] = number;
        self.at += 1;
    }

    fn count(&mut self, number: usize) {
        self.put(number as f64);
    }

    fn flag(&mut self, flag: bool) {
        self.put(f64::from(u8::from(flag)));
    }

    fn both(&mut self, one: usize, other: usize) {
        self.count(one.min(other));
        self.count(one.max(other));
    }
}

/// The numbers by NAMES.
pub fn features(new: &Text, kept: &Text, cosine: f64, deep: f64) -> Numbers {
    let mut pen = Pen {
        numbers: [0.0; NAMES.len()],
        at: 0,
    };
    pen.put(cosine);
    pen.put(deep);
    let pairs = matches(new, kept);
    let mut own = alone(new, pairs.iter().map(|pair| pair.0));
    let mut other = alone(kept, pairs.iter().map(|pair| pair.1));
    // Counted before synonyms are paired off: "increase" and "reduce" share an axis whatever else they share.
    let opposed = |word: &&Word| {
        other
            .iter()
            .filter(|candidate| new.tables.lists.opposed(word, candidate))
            .count()
    };
    let opposites: usize = own.iter().map(opposed).sum();
    let both =
        |&&(i, j): &&(u16, u16)| new.words[usize::from(i)].is_content() && kept.words[usize::from(j)].is_content();
    let content: Vec<(u16, u16)> = pairs.iter().filter(both).copied().collect();
    let own_content: Vec<&Word> = new.words.iter().filter(|word| word.is_content()).collect();
    let other_content: Vec<&Word> = kept.words.iter().filter(|word| word.is_content()).collect();
    overlaps(&mut pen, new, kept, &pairs, &content, &own_content, &other_content);
    let lone = own.len() + other.len();
    let synonyms = pair_off(new, &mut own, &mut other);
    let left: Vec<&Word> = own.iter().filter(|word| word.is_content()).copied().collect();
    let right: Vec<&Word> = other.iter().filter(|word| word.is_content()).copied().collect();
    left_overs(&mut pen, &left, &right);
    near_numbers(&mut pen, new, kept, [&left, &right, &own_content, &other_content]);
    pen.count(synonyms);
    order(&mut pen, new, kept, &pairs, &content, lone);
    let same = |one: Option<&&Word>, two: Option<&&Word>| one.zip(two).is_some_and(|(a, b)| a.key == b.key);
    pen.flag(same(own_content.first(), other_content.first()));
    pen.flag(same(own_content.last(), other_content.last()));
    marks(&mut pen, new, kept, &own, &other, &left, &right);
    pen.count(opposites);
    names(&mut pen, &left, &right);
    pen.flag(new.code != kept.code);
    pen.flag(new.asks == kept.asks && new.asks != 0);
    pen.flag(new.asks != 0 && kept.asks != 0 && new.asks != kept.asks);
    small(&mut pen, &own, &other);
    let (one, two) = (new.words.len(), kept.words.len());
    pen.count(own_content.len().min(other_content.len()));
    pen.count(own_content.len().abs_diff(other_content.len()));
    pen.put(one.abs_diff(two) as f64 / one.max(two).max(1) as f64);
    pen.count(new.questions.abs_diff(kept.questions) as usize);
    pen.count(new.sentences.abs_diff(kept.sentences) as usize);
    pen.flag(one > 0 && one == two && new.words.iter().zip(&kept.words[..]).all(|(a, b)| a.key == b.key));
    pen.numbers
}

fn overlaps(
    pen: &mut Pen,
    new: &Text,
    kept: &Text,
    pairs: &[(u16, u16)],
    content: &[(u16, u16)],
    own: &[&Word],
    other: &[&Word],
) {
    let weight = |words: &[&Word]| f64::from(words.iter().map(|word| u32::from(word.idf)).sum::<u32>());
    let lighter = |&(i, j): &(u16, u16)| u32::from(new.words[usize::from(i)].idf.min(kept.words[usize::from(j)].idf));
    let both = f64::from(content.iter().map(lighter).sum::<u32>());
    let (own_weight, other_weight) = (weight(own), weight(other));
    pen.put(ratio(both, own_weight + other_weight - both));
    pen.put(ratio(
        pairs.len() as f64,
        (new.words.len() + kept.words.len() - pairs.len()) as f64,
    ));
    let covers = (ratio(both, own_weight), ratio(both, other_weight));
    pen.put(covers.0.min(covers.1));
    pen.put(covers.0.max(covers.1));
    pen.put(overlap(&bigrams(own.iter().copied()), &bigrams(other.iter().copied())));
    pen.put(overlap(&bigrams(new.words.iter()), &bigrams(kept.words.iter())));
}

fn left_overs(pen: &mut Pen, left: &[&Word], right: &[&Word]) {
    let rarest = |words: &[&Word]| words.iter().map(|word| usize::from(word.idf)).max().unwrap_or(0);
    let weight = |words: &[&Word]| words.iter().map(|word| usize::from(word.idf)).sum::<usize>();
    pen.both(left.len(), right.len());
    pen.both(rarest(left), rarest(right));
    pen.both(weight(left), weight(right));
}

fn near_numbers(pen: &mut Pen, new: &Text, kept: &Text, [left, right, own, other]: [&[&Word]; 4]) {
    let lone = [meanings(new, left, MOST_NEAR), meanings(kept, right, MOST_NEAR)];
    let mut lows = [1.0f64; 2];
    let (mut nearness, mut weight) = (0.0, 0.0);
    let sides = [(left, kept, other), (right, new, own)];
    for (side, (words, text, others)) in sides.into_iter().enumerate() {
        if words.is_empty() {
            continue;
        }
        let others = meanings(text, others, 2 * MOST_NEAR);
        for (word, meaning) in words.iter().zip(&lone[side]) {
            let near = nearest(meaning, &others);
            lows[side] = lows[side].min(near);
            nearness += near * f64::from(word.idf);
            weight += f64::from(word.idf);
        }
    }
    pen.put(ratio(nearness, weight));
    pen.put(lows[0].min(lows[1]));
    pen.put(lows[0].max(lows[1]));
    let swapped = lone[0]
        .iter()
        .map(|meaning| nearest(meaning, &lone[1]))
        .fold(1.0, f64::min);
    pen.put(if lone[1].is_empty() { 1.0 } else { swapped });
}

fn order(pen: &mut Pen, new: &Text, kept: &Text, pairs: &[(u16, u16)], content: &[(u16, u16)], lone: usize) {
    let places = |pairs: &[(u16, u16)]| pairs.iter().map(|pair| pair.1).collect::<Vec<u16>>();
    let (of_content, of_all) = (places(content), places(pairs));
    let is_placed =
        |&&(i, j): &&(u16, u16)| new.words[usize::from(i)].is_placed() && kept.words[usize::from(j)].is_placed();
    let broken = breaks(&pairs.iter().filter(is_placed).map(|pair| pair.1).collect::<Vec<u16>>());
    pen.count(of_content.len() - longest_run(&of_content));
    pen.count(of_all.len() - longest_run(&of_all));
    let all_broken = breaks(&of_all);
    pen.count(broken);
    pen.count(all_broken);
    pen.flag(broken > 1 || (all_broken > 1 && (broken == 1 || lone < 2)));
    pen.count(roles(new, kept, content));
}

/// Numbers, dates, units and negations that only one of the texts has.
fn marks(pen: &mut Pen, new: &Text, kept: &Text, own: &[&Word], other: &[&Word], left: &[&Word], right: &[&Word]) {
    let all = |text: &Text, flag: u16| text.words.iter().filter(|word| word.is(flag)).count();
    let numbers = (count(own, NUMBER), count(other, NUMBER));
    let totals = (all(new, NUMBER), all(kept, NUMBER));
    let negations = (all(new, NEGATION), all(kept, NEGATION));
    pen.count(numbers.0 + numbers.1);
    pen.flag((totals.0 == 0) != (totals.1 == 0));
    pen.count(totals.0.min(totals.1).saturating_sub(numbers.0.max(numbers.1)));
    pen.count(count(own, ORDINAL) + count(other, ORDINAL));
    pen.count(count(left, DATE) + count(right, DATE));
    pen.count(count(own, UNIT).min(count(other, UNIT)));
    pen.count(negations.0 + negations.1);
    pen.flag((negations.0 + negations.1) % 2 == 1);
}

fn names(pen: &mut Pen, left: &[&Word], right: &[&Word]) {
    let (one, two) = (count(left, NAME), count(right, NAME));
    let heaviest = left
        .iter()
        .chain(right)
        .filter(|word| word.is(NAME))
        .map(|word| usize::from(word.idf))
        .max();
    pen.count(one + two);
    pen.count(heaviest.unwrap_or(0));
    pen.count(one.min(two));
    pen.count(count(left, IDENT) + count(right, IDENT));
}

/// The function words that one text has alone and that no way of asking accounts for.
fn small(pen: &mut Pen, own: &[&Word], other: &[&Word]) {
    let small: Vec<&Word> = own
        .iter()
        .chain(other)
        .filter(|word| word.is(STOP) && !word.is(ASKED))
        .copied()
        .collect();
    for flag in [PRONOUN, RELATION, MODAL, QUANTITY] {
        pen.count(count(&small, flag));
    }
    pen.count(small.len());
}
