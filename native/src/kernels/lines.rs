//! Lines and data of server-sent events. Source: WHATWG HTML, 9.2.6 "Interpreting an event stream".

use std::borrow::Cow;

use super::json::line_stop;

/// What Python's `bytes.strip` takes away.
pub fn space(c: u8) -> bool {
    matches!(c, b' ' | b'\t'..=b'\r')
}

/// The place behind the line end at `i`: LF, CRLF or CR. Past the end of the text it stays there.
#[inline]
pub fn after_line(b: &[u8], i: usize) -> usize {
    match b.get(i) {
        None => b.len(),
        Some(b'\r') if b.get(i + 1) == Some(&b'\n') => i + 2,
        Some(_) => i + 1,
    }
}

/// The value of a `data` line, if it is one.
#[inline]
pub fn data_in(line: &[u8]) -> Option<&[u8]> {
    match line.strip_prefix(b"data")? {
        [b':', b' ', rest @ ..] | [b':', rest @ ..] => Some(rest),
        [] => Some(b""),
        _ => None,
    }
}

/// The data of one event; None if it has no data line (a comment, a lone `event:` line).
pub fn data_of(event: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut found: Option<Cow<'_, [u8]>> = None;
    let mut i = 0;
    while i < event.len() {
        let stop = line_stop(event, i);
        if let Some(data) = data_in(&event[i..stop]) {
            match &mut found {
                None => found = Some(Cow::Borrowed(data)),
                Some(whole) => {
                    let whole = whole.to_mut();
                    whole.push(b'\n');
                    whole.extend_from_slice(data);
                }
            }
        }
        i = after_line(event, stop);
    }
    found
}
