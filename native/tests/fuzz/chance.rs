//! Chance that follows from a number, and what it does to a seed.

pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// A part of `n` bytes, most often a short one.
    pub fn part(&mut self, n: usize) -> std::ops::Range<usize> {
        let from = self.below(n + 1);
        let most = [1, 4, 32, n][self.below(4)];
        from..(from + self.below(most + 1)).min(n)
    }
}

/// What a byte of others likes to be.
pub const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\n\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b"data: ",
    b"data:",
    b"event: error\n",
    b": ping\n\n",
    b"\xef\xbb\xbf",
    b"[DONE]",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud83d",
    b"1e999",
    b"-0",
    b"null",
    b"\xff",
    b"\xf0\x9f\x98\x80",
    b"\"choices\":[",
    b"\"usage\":{",
    b"\"error\":{}",
    b"\"finish_reason\":\"stop\"",
    b"\"content\":\"x\"",
    b"content-length: 5\r\n",
    b"content-length: 0\r\n",
    b"Content-Length: 18446744073709551615\r\n",
    b"transfer-encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"connection: close\r\n",
    b"expect: 100-continue\r\n",
    b"upgrade: x\r\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"ffffffffffffffff\r\n",
    b";a=\"b\"",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n",
];

pub fn mutate(chance: &mut Chance, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[chance.below(seeds.len())].clone();
    for _ in 0..chance.below(6) {
        let at = chance.below(data.len() + 1);
        match chance.below(7) {
            0 if at < data.len() => data[at] ^= 1 << chance.below(8),
            1 if at < data.len() => data[at] = chance.next() as u8,
            2 => drop(data.drain(chance.part(data.len()))),
            3 => {
                let copy = data[chance.part(data.len())].to_vec();
                data.splice(at..at, copy);
            }
            4 => {
                let other = &seeds[chance.below(seeds.len())];
                let part = other[chance.part(other.len())].to_vec();
                data.splice(at..at, part);
            }
            5 => data.truncate(at),
            _ => {
                let word = WORDS[chance.below(WORDS.len())];
                data.splice(at..at, word.iter().copied());
            }
        }
        data.truncate(20_000);
    }
    data
}

/// Cut into pieces: all single bytes, equal ones, or as it comes.
pub fn pieces(chance: &mut Chance, data: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let size = [1, 2, 7, 64, 0][chance.below(5)];
    let mut rest = data;
    while !rest.is_empty() {
        let n = if size > 0 { size } else { 1 + chance.below(rest.len()) };
        let (piece, after) = rest.split_at(n.min(rest.len()));
        out.push(piece.to_vec());
        rest = after;
    }
    out
}
