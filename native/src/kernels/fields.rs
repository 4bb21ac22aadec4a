//! A line of JSON, written field by field.

use super::unpack::Text;

/// Appends to what it holds. `name`: what stands between the last value and this one, for a text with its first quote.
pub struct Line<'o>(pub &'o mut Vec<u8>);

impl Line<'_> {
    /// As it stands.
    #[inline(always)]
    pub fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    #[inline(always)]
    pub fn text(&mut self, name: &[u8], text: Text<'_>) {
        self.put(name);
        if text.plain {
            self.put(text.bytes);
        } else {
            self.escaped(text.bytes);
        }
        self.0.push(b'"');
    }

    fn escaped(&mut self, bytes: &[u8]) {
        let mut from = 0;
        for (at, c) in bytes.iter().enumerate() {
            if *c >= 0x20 && *c != b'"' && *c != b'\\' {
                continue;
            }
            self.put(&bytes[from..at]);
            from = at + 1;
            let short = match c {
                b'"' => b'"',
                b'\\' => b'\\',
                8 => b'b',
                12 => b'f',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                _ => {
                    self.put(format!("\\u{c:04x}").as_bytes());
                    continue;
                }
            };
            self.put(&[b'\\', short]);
        }
        self.put(&bytes[from..]);
    }

    #[inline(always)]
    pub fn number(&mut self, name: &[u8], value: i64) {
        self.put(name);
        self.digits(value.unsigned_abs(), value < 0);
    }

    #[inline]
    pub fn digits(&mut self, n: u64, negative: bool) {
        if negative {
            self.0.push(b'-');
        }
        if n < 10 {
            self.0.push(b'0' + n as u8); // most are: tokens that there were none of, what was not saved
        } else {
            self.many_digits(n);
        }
    }

    fn many_digits(&mut self, mut n: u64) {
        let mut room = [0; 20];
        let mut at = room.len();
        while n > 0 {
            at -= 1;
            room[at] = b'0' + (n % 10) as u8;
            n /= 10;
        }
        self.put(&room[at..]);
    }

    #[inline(always)]
    pub fn truth(&mut self, name: &[u8], value: bool) {
        self.put(name);
        if value {
            self.put(b"true");
        } else {
            self.put(b"false");
        }
    }

    /// Nanoseconds as milliseconds, to the microsecond, as a float is written: at least one decimal.
    pub fn millis(&mut self, name: &[u8], ns: i64) {
        self.put(name);
        let us = ns.saturating_add(500).div_euclid(1000);
        let (whole, part) = (us.unsigned_abs() / 1000, us.unsigned_abs() % 1000);
        self.digits(whole, us < 0);
        self.0.push(b'.');
        self.0.push(b'0' + (part / 100) as u8);
        if part % 100 != 0 {
            self.0.push(b'0' + (part / 10 % 10) as u8);
            if part % 10 != 0 {
                self.0.push(b'0' + (part % 10) as u8);
            }
        }
    }
}

/// Stamps of times that come about in order: within one second only the end is written anew.
pub struct Stamps {
    second: i64,
    last: [u8; 24],
}

impl Default for Stamps {
    fn default() -> Self {
        Self {
            second: 0,
            last: stamp(0),
        }
    }
}

impl Stamps {
    /// RFC 3339 in UTC with milliseconds.
    pub fn of(&mut self, wall_ns: i64) -> [u8; 24] {
        let (second, ms) = (
            wall_ns.div_euclid(1_000_000_000),
            wall_ns.rem_euclid(1_000_000_000) / 1_000_000,
        );
        if second != self.second {
            (self.second, self.last) = (second, stamp(second));
        }
        for (place, part) in [(20, ms / 100), (21, ms / 10 % 10), (22, ms % 10)] {
            self.last[place] = b'0' + part as u8;
        }
        self.last
    }
}

/// At the beginning of a second. Days to a date as in Howard Hinnant's `civil_from_days`.
fn stamp(seconds: i64) -> [u8; 24] {
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    let mut out = *b"0000-00-00T00:00:00.000Z";
    let mut put = |end: usize, digits: usize, mut n: i64| {
        for at in (end - digits..end).rev() {
            out[at] = b'0' + (n % 10) as u8;
            n /= 10;
        }
    };
    put(4, 4, year);
    put(7, 2, month);
    put(10, 2, day);
    put(13, 2, of_day / 3600);
    put(16, 2, of_day / 60 % 60);
    put(19, 2, of_day % 60);
    out
}
