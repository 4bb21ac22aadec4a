//! The grammar of JSON (RFC 8259) over bytes, for kernels that look at text and build nothing.
//!
//! Each function takes the text and a place in it and returns the place behind what stood there. Values are walked with
//! a bit per nesting level instead of recursion. Strings, where nearly all bytes are, are skipped sixteen bytes at a time
//! with SSE2, else eight (the "has byte less than n / equal to n" tricks of Hacker's Delight and Bit Twiddling Hacks).
//! That the text is UTF-8 is for the caller to check.

/// Deeper than any request of a real client (tool schemas reach about 20), shallow enough to fit one machine word.
pub const MAX_DEPTH: u32 = 128;

/// Where the text stops being JSON, and how.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed(pub usize, pub &'static str);

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Index of the first byte at or after `i` that ends or bends a string: a quote, a backslash or a control character.
#[inline]
pub fn string_stop(b: &[u8], mut i: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    while let Some(block) = b.get(i..i + 16) {
        let hit = stops_of(block.try_into().expect("sixteen bytes"));
        if hit != 0 {
            return i + hit.trailing_zeros() as usize;
        }
        i += 16;
    }
    while let Some(chunk) = b.get(i..i + 8) {
        let w = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        let quote = w ^ (ONES * u64::from(b'"'));
        let slash = w ^ (ONES * u64::from(b'\\'));
        // A borrow can only raise false alarms above the first true one, so the lowest set bit is exact.
        let hit =
            (quote.wrapping_sub(ONES) & !quote | slash.wrapping_sub(ONES) & !slash | w.wrapping_sub(ONES * 0x20) & !w)
                & HIGHS;
        if hit != 0 {
            return i + (hit.trailing_zeros() / 8) as usize;
        }
        i += 8;
    }
    while i < b.len() && b[i] != b'"' && b[i] != b'\\' && b[i] >= 0x20 {
        i += 1;
    }
    i
}

/// A bit for each of these bytes that ends or bends a string.
#[cfg(target_arch = "x86_64")]
#[inline]
fn stops_of(block: &[u8; 16]) -> u32 {
    use std::arch::x86_64::{
        __m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8,
    };
    // SAFETY: SSE2 is part of x86-64; the load takes any alignment and exactly the block's sixteen bytes.
    unsafe {
        let bytes = _mm_loadu_si128(block.as_ptr().cast::<__m128i>());
        let quote = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'"' as i8));
        let slash = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\' as i8));
        let control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1f)), bytes);
        _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quote, slash), control)) as u32
    }
}

#[inline]
pub fn blank(b: &[u8], mut i: usize) -> usize {
    while i < b.len() && matches!(b[i], b' ' | b'\n' | b'\t' | b'\r') {
        i += 1;
    }
    i
}

pub fn hex4(b: &[u8], i: usize) -> Result<u32, Malformed> {
    let mut v = 0;
    for k in 0..4 {
        let d = b.get(i + k).map_or(NO_DIGIT, |c| HEX[usize::from(*c)]);
        if d == NO_DIGIT {
            return Err(Malformed(i + k, "bad \\u escape"));
        }
        v = v << 4 | u32::from(d);
    }
    Ok(v)
}

const NO_DIGIT: u8 = 0xff;

/// What each byte is worth as a hexadecimal digit.
static HEX: [u8; 256] = {
    let mut table = [NO_DIGIT; 256];
    let mut v = 0;
    while v < 16 {
        table[b"0123456789abcdef"[v as usize] as usize] = v;
        table[b"0123456789ABCDEF"[v as usize] as usize] = v;
        v += 1;
    }
    table
};

/// `i` is just after the opening quote; returns just after the closing one, and whether an escape was met.
#[inline]
pub fn string(b: &[u8], i: usize) -> Result<(usize, bool), Malformed> {
    let stop = string_stop(b, i);
    if b.get(stop) == Some(&b'"') {
        return Ok((stop + 1, false));
    }
    bent_string(b, stop).map(|end| (end, true))
}

/// The rest of a string from its first escape, or whatever else is no end of it.
fn bent_string(b: &[u8], mut i: usize) -> Result<usize, Malformed> {
    loop {
        match b.get(i) {
            None => return Err(Malformed(i, "unterminated string")),
            Some(b'"') => return Ok(i + 1),
            Some(b'\\') => match b.get(i + 1) {
                Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => i += 2,
                Some(b'u') => i = unicode(b, i)?,
                _ => return Err(Malformed(i, "bad escape")),
            },
            Some(_) => return Err(Malformed(i, "control character in string")),
        }
        i = string_stop(b, i);
    }
}

/// A `\u` escape at `i`, or the two of a pair; a half of one is refused: what one parser drops and another replaces is a
/// way round rules.
fn unicode(b: &[u8], i: usize) -> Result<usize, Malformed> {
    let v = hex4(b, i + 2)?;
    if !(0xD800..0xE000).contains(&v) {
        return Ok(i + 6);
    }
    let paired = v < 0xDC00
        && b.get(i + 6) == Some(&b'\\')
        && b.get(i + 7) == Some(&b'u')
        && (0xDC00..0xE000).contains(&hex4(b, i + 8)?);
    if paired {
        Ok(i + 12)
    } else {
        Err(Malformed(i, "lone surrogate"))
    }
}

fn digits(b: &[u8], mut i: usize) -> Result<usize, Malformed> {
    let from = i;
    while i < b.len() && b[i].is_ascii_digit() {
        i += 1;
    }
    if i == from {
        return Err(Malformed(i, "digit expected"));
    }
    Ok(i)
}

pub fn number(b: &[u8], mut i: usize) -> Result<usize, Malformed> {
    if b[i] == b'-' {
        i += 1;
    }
    i = if b.get(i) == Some(&b'0') { i + 1 } else { digits(b, i)? };
    if b.get(i) == Some(&b'.') {
        i = digits(b, i + 1)?;
    }
    if matches!(b.get(i), Some(b'e' | b'E')) {
        i += 1;
        if matches!(b.get(i), Some(b'+' | b'-')) {
            i += 1;
        }
        i = digits(b, i)?;
    }
    Ok(i)
}

fn word(b: &[u8], i: usize) -> Result<usize, Malformed> {
    for w in [&b"true"[..], b"false", b"null"] {
        if b[i..].starts_with(w) {
            return Ok(i + w.len());
        }
    }
    Err(Malformed(i, "value expected"))
}

/// Skip one value that begins at `i` (not blank); `depth` counts what is open around it.
pub fn value(b: &[u8], mut i: usize, depth: u32) -> Result<usize, Malformed> {
    // One bit per open bracket, lowest = innermost: 1 object, 0 array.
    let mut kinds: u128 = 0;
    let mut open = 0u32;
    loop {
        // A value begins at i.
        match b.get(i) {
            None => return Err(Malformed(i, "value expected")),
            Some(c @ (b'{' | b'[')) => {
                open += 1;
                if depth + open > MAX_DEPTH {
                    return Err(Malformed(i, "nested too deeply"));
                }
                kinds = kinds << 1 | u128::from(*c == b'{');
                i = blank(b, i + 1);
                if b.get(i) == Some(&(c + 2)) {
                    // '{' + 2 == '}' and '[' + 2 == ']'
                    open -= 1;
                    kinds >>= 1;
                    i += 1;
                } else {
                    if *c == b'{' {
                        i = key(b, i)?.2;
                    }
                    continue;
                }
            }
            Some(b'"') => i = string(b, i + 1)?.0,
            Some(b'-' | b'0'..=b'9') => i = number(b, i)?,
            Some(_) => i = word(b, i)?,
        }
        // A value has ended at i: close brackets until another value begins.
        loop {
            if open == 0 {
                return Ok(i);
            }
            i = blank(b, i);
            match (b.get(i), kinds & 1 == 1) {
                (Some(b','), true) => {
                    i = key(b, blank(b, i + 1))?.2;
                    break;
                }
                (Some(b','), false) => {
                    i = blank(b, i + 1);
                    break;
                }
                (Some(b'}'), true) | (Some(b']'), false) => {
                    open -= 1;
                    kinds >>= 1;
                    i += 1;
                }
                _ => return Err(Malformed(i, "',' or closing bracket expected")),
            }
        }
    }
}

/// A key at `i`: (start, end, start of its value, escaped), the quotes left out.
pub fn key(b: &[u8], i: usize) -> Result<(usize, usize, usize, bool), Malformed> {
    if b.get(i) != Some(&b'"') {
        return Err(Malformed(i, "field name in double quotes expected"));
    }
    let (after, escaped) = string(b, i + 1)?;
    let colon = blank(b, after);
    if b.get(colon) != Some(&b':') {
        return Err(Malformed(colon, "':' expected"));
    }
    Ok((i + 1, after - 1, blank(b, colon + 1), escaped))
}

/// Walk the object that begins at `i`: `take` gets each field's name (escapes undone) and the place of its value, and
/// returns the place behind it.
#[inline]
pub fn fields(
    b: &[u8],
    i: usize,
    mut take: impl FnMut(&[u8], usize) -> Result<usize, Malformed>,
) -> Result<usize, Malformed> {
    if b.get(i) != Some(&b'{') {
        return Err(Malformed(i, "a JSON object expected"));
    }
    let mut i = blank(b, i + 1);
    if b.get(i) == Some(&b'}') {
        return Ok(i + 1);
    }
    loop {
        let (from, to, start, escaped) = key(b, i)?;
        let end = if escaped {
            take(unescape(&b[from..to]).as_bytes(), start)?
        } else {
            take(&b[from..to], start)?
        };
        i = blank(b, end);
        match b.get(i) {
            Some(b',') => i = blank(b, i + 1),
            Some(b'}') => return Ok(i + 1),
            _ => return Err(Malformed(i, "',' or '}' expected")),
        }
    }
}

/// Walk an array that begins at `i`: `visit` is given the place of each item and returns the place behind it.
pub fn items(b: &[u8], i: usize, mut visit: impl FnMut(usize) -> Result<usize, Malformed>) -> Result<usize, Malformed> {
    if b.get(i) != Some(&b'[') {
        return Err(Malformed(i, "an array expected"));
    }
    let mut i = blank(b, i + 1);
    if b.get(i) == Some(&b']') {
        return Ok(i + 1);
    }
    loop {
        i = blank(b, visit(i)?);
        match b.get(i) {
            Some(b',') => i = blank(b, i + 1),
            Some(b']') => return Ok(i + 1),
            _ => return Err(Malformed(i, "',' or ']' expected")),
        }
    }
}

/// `null` at `i`, or nothing of the kind.
#[inline]
pub fn null(b: &[u8], i: usize) -> Option<usize> {
    b.get(i..i + 4).filter(|w| *w == b"null").map(|_| i + 4)
}

/// The text of a string that `string` has accepted, the quotes left out.
pub fn unescape(b: &[u8]) -> String {
    let mut out = Vec::with_capacity(b.len());
    let mut i = 0;
    while let Some(c) = b.get(i) {
        if *c != b'\\' {
            out.push(*c);
            i += 1;
            continue;
        }
        match b.get(i + 1) {
            Some(b'u') => {
                let mut v = hex4(b, i + 2).unwrap_or(0xFFFD);
                i += 6;
                if (0xD800..0xDC00).contains(&v) {
                    v = 0x1_0000 + ((v - 0xD800) << 10 | hex4(b, i + 2).unwrap_or(0) & 0x3FF);
                    i += 6;
                }
                let c = char::from_u32(v).unwrap_or(char::REPLACEMENT_CHARACTER);
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            Some(b'b') => out.push(8),
            Some(b'f') => out.push(12),
            Some(b'n') => out.push(b'\n'),
            Some(b'r') => out.push(b'\r'),
            Some(b't') => out.push(b'\t'),
            Some(c) => out.push(*c),
            None => {}
        }
        i += 2;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Index of the first `\n` or `\r` at or after `i`, or the length.
#[inline]
pub fn line_stop(b: &[u8], mut i: usize) -> usize {
    loop {
        // Control characters are found in one test; the rare others (a tab) are stepped over.
        while let Some(chunk) = b.get(i..i + 8) {
            let w = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
            let hit = w.wrapping_sub(ONES * 0x20) & !w & HIGHS;
            if hit != 0 {
                i += (hit.trailing_zeros() / 8) as usize;
                break;
            }
            i += 8;
        }
        match b.get(i) {
            None | Some(b'\n' | b'\r') => return i,
            Some(_) => i += 1,
        }
    }
}
