//! Boosted trees with a table of thresholds. The layout of a forest in a file stands in the twin, `parts/trees.py`.

use super::pairs::Numbers;

#[derive(Clone, Copy)]
struct Node {
    value: f64,
    /// -1: a leaf
    number: i16,
    left: u16,
    right: u16,
}

/// What was chosen for a rate of wrong answers.
#[derive(Clone, Copy)]
pub struct Rate {
    rate: f64,
    pub threshold: f64,
    pub low: f64,
    pub sure: f64,
}

/// One set of trees with the thresholds that were chosen for it.
pub struct Forest {
    base: f64,
    /// Rising.
    rates: Vec<Rate>,
    trees: Vec<Box<[Node]>>,
}

/// What is left of a file; every read says None at its end.
pub struct Source<'a>(pub &'a [u8]);

impl<'a> Source<'a> {
    pub fn bytes(&mut self, size: usize) -> Option<&'a [u8]> {
        if size > self.0.len() {
            return None;
        }
        let (part, rest) = self.0.split_at(size);
        self.0 = rest;
        Some(part)
    }

    pub fn short(&mut self) -> Option<u16> {
        self.bytes(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
    }

    fn float(&mut self) -> Option<f64> {
        self.bytes(8)?.first_chunk().map(|b| f64::from_le_bytes(*b))
    }
}

pub const SHORT: &str = "a verifier file that ends too early";

impl Forest {
    pub fn read(source: &mut Source<'_>) -> Result<Self, &'static str> {
        let base = source.float().ok_or(SHORT)?;
        let mut rates = Vec::new();
        for _ in 0..source.short().ok_or(SHORT)? {
            let mut next = || source.float().ok_or(SHORT);
            rates.push(Rate {
                rate: next()?,
                threshold: next()?,
                low: next()?,
                sure: next()?,
            });
        }
        let mut trees = Vec::new();
        for _ in 0..source.short().ok_or(SHORT)? {
            let mut tree = Vec::new();
            for _ in 0..source.short().ok_or(SHORT)? {
                let number = source.short().ok_or(SHORT)? as i16;
                let value = source.float().ok_or(SHORT)?;
                let (left, right) = (source.short().ok_or(SHORT)?, source.short().ok_or(SHORT)?);
                tree.push(Node {
                    value,
                    number,
                    left,
                    right,
                });
            }
            check(&tree)?;
            trees.push(tree.into_boxed_slice());
        }
        Ok(Self { base, rates, trees })
    }

    pub fn score(&self, numbers: &Numbers) -> f64 {
        let mut total = self.base;
        for tree in &self.trees {
            let mut node = tree[0];
            while node.number >= 0 {
                let up_to = numbers[node.number as usize] <= node.value;
                node = tree[usize::from(if up_to { node.left } else { node.right })];
            }
            total += node.value;
        }
        1.0 / (1.0 + (-total).exp())
    }

    /// The last of the rates that does not go beyond `rate`, with what was chosen for it.
    pub fn chosen(&self, rate: f64) -> Rate {
        let none = Rate {
            rate: 0.0,
            threshold: 2.0,
            low: 2.0,
            sure: 2.0,
        };
        self.rates
            .iter()
            .rev()
            .find(|known| known.rate <= rate + 1e-12)
            .copied()
            .unwrap_or(none)
    }
}

fn check(tree: &[Node]) -> Result<(), &'static str> {
    if tree.is_empty() {
        return Err("a verifier file with an empty tree");
    }
    let fits = |(place, node): (usize, &Node)| {
        let behind = |to: u16| place < usize::from(to) && usize::from(to) < tree.len();
        node.number < 0
            || ((node.number as usize) < super::pairs::NAMES.len() && behind(node.left) && behind(node.right))
    };
    if tree.iter().enumerate().all(fits) {
        Ok(())
    } else {
        Err("a verifier file with a tree that does not end")
    }
}
