//! `--name value` and `--flag` arguments; an unknown one is refused.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;

pub struct Args(HashMap<String, Vec<String>>);

impl Args {
    /// Reads the process arguments. `valued` names take a value (and may repeat), `flags` take none.
    /// Prints `usage` and exits with 2 on anything else.
    pub fn read(valued: &[&str], flags: &[&str], usage: &str) -> Args {
        let mut found: HashMap<String, Vec<String>> = HashMap::new();
        let mut rest = std::env::args().skip(1);
        while let Some(raw) = rest.next() {
            let (name, inline) = match raw.split_once('=') {
                Some((name, value)) => (name.to_string(), Some(value.to_string())),
                None => (raw, None),
            };
            let name = name.strip_prefix("--").unwrap_or("").to_string();
            let value = if flags.contains(&name.as_str()) {
                Some(String::new())
            } else if valued.contains(&name.as_str()) {
                inline.or_else(|| rest.next())
            } else {
                None
            };
            match value {
                Some(value) => found.entry(name).or_default().push(value),
                None => refuse(&format!("bad argument --{name}"), usage),
            }
        }
        Args(found)
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub fn all(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    pub fn text(&self, name: &str, default: &str) -> String {
        self.all(name).last().cloned().unwrap_or_else(|| default.to_string())
    }

    /// The value as a number; exits with 2 when it is none.
    pub fn number<T: FromStr>(&self, name: &str, default: T) -> T
    where
        T::Err: Display,
    {
        match self.all(name).last() {
            None => default,
            Some(text) => text.parse().unwrap_or_else(|why| refuse(&format!("--{name} {text}: {why}"), "")),
        }
    }
}

/// Says what is wrong with the command line and exits with 2.
pub fn refuse(why: &str, usage: &str) -> ! {
    eprintln!("{why}");
    if !usage.is_empty() {
        eprintln!("{usage}");
    }
    std::process::exit(2)
}
