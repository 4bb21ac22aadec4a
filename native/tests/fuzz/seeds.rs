//! What is mutated.

use std::path::PathBuf;

pub fn own(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|w| w.as_bytes().to_vec()).collect()
}

pub fn base64(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut bits, mut n) = (0_u32, 0);
    for c in text.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => break,
        };
        bits = bits << 6 | u32::from(value);
        n += 6;
        if n >= 8 {
            n -= 8;
            out.push((bits >> n) as u8);
        }
    }
    out
}

/// All base64 texts of a file of recorded vectors, one row a seed. Empty where the file is not there.
pub fn recorded(file: &str) -> Vec<Vec<u8>> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let folder = std::env::var_os("TURNOUT_FUZZ_DATA").map_or(beside, PathBuf::from);
    let Ok(text) = std::fs::read_to_string(folder.join(file)) else {
        println!("{file} is not beside the project: fuzzing without it");
        return Vec::new();
    };
    let seeds = text.lines().map(|line| {
        let (_, texts) = line.split_once("_b64\": ")?;
        let texts = texts
            .split_once("\", \"")
            .map_or(texts, |(first, rest)| if texts.starts_with('[') { rest } else { first });
        Some(texts.split('"').flat_map(base64).collect::<Vec<u8>>())
    });
    let mut seeds: Vec<_> = seeds.flatten().collect();
    for seed in &mut seeds {
        seed.truncate(4096);
    }
    seeds
}
