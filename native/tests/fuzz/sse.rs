//! The scanner of streams.

use _native::kernels::sse::{Marks, Scanner};

use crate::chance::{pieces, Chance};

fn stream(pieces: &[Vec<u8>], strip: bool) -> (Vec<u8>, Marks) {
    let mut scanner = Scanner::new(strip);
    let mut out = Vec::new();
    for piece in pieces {
        out.extend_from_slice(scanner.feed(piece).of(piece));
    }
    out.extend_from_slice(&scanner.close());
    (out, scanner.marks)
}

pub fn sse(data: &[u8], chance: &mut Chance) {
    let strip = chance.below(2) == 0;
    let (whole, mut marks) = stream(&[data.to_vec()], strip);
    let (cut, mut cut_marks) = stream(&pieces(chance, data), strip);
    // Where CR and LF of one line end come apart, one of them may stay behind; the text is the same.
    for marks in [&mut marks, &mut cut_marks] {
        marks.error_event.retain(|c| !b"\r\n".contains(c));
    }
    assert_eq!(marks, cut_marks);
    let text = |out: &[u8]| out.iter().copied().filter(|c| !b"\r\n".contains(c)).collect::<Vec<_>>();
    assert_eq!(text(&whole), text(&cut));
    assert!(whole.len() <= data.len() + 2);
    assert!(!marks.error.as_ref().is_some_and(Vec::is_empty));
}
