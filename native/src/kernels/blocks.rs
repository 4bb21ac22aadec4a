//! Which of sixty-four bytes are what, a bit for each, the first byte lowest: with AVX2 where the processor has it, SSE2
//! on other x86-64 machines, and eight bytes in a register (Hacker's Delight, 6-1) elsewhere.

/// Bytes in a block.
pub const WIDTH: usize = 64;

pub type Block = [u8; WIDTH];

/// A way to look at a block. Values of these types are proof that the processor can do it.
pub trait Look: Copy {
    /// Quotes and control characters, which end a string rightly or not; and backslashes.
    fn ends(self, block: &Block) -> (u64, u64);
    /// Quotes.
    fn quotes(self, block: &Block) -> u64;
    /// Whether a byte is not ASCII.
    fn beyond_ascii(self, block: &Block) -> bool;
}

/// Something to be done with whatever way there is.
pub trait Task {
    type Out;

    /// Has to be inlined: only then the instructions of the way are.
    fn run(self, look: impl Look) -> Self::Out;
}

/// Do it the fastest way that the processor has.
#[inline]
pub fn run<T: Task>(task: T) -> T::Out {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,bmi1,bmi2")]
        unsafe fn with_avx2<T: Task>(task: T, look: Avx2) -> T::Out {
            task.run(look)
        }
        match Avx2::found() {
            // SAFETY: a value of `Avx2` says that the processor has all three.
            Some(look) => unsafe { with_avx2(task, look) },
            None => task.run(Sse2),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    task.run(Words)
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Sse2};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Block, Look};

    /// With this bit turned quotes come to lie behind the control characters, which stay among themselves: together they
    /// are the bytes up to `MOST`.
    const TURN: i8 = 2;
    const MOST: i8 = 0x20;

    #[derive(Clone, Copy)]
    pub struct Sse2;

    impl Sse2 {
        #[inline(always)]
        fn quarters(block: &Block) -> [__m128i; 4] {
            let at = block.as_ptr().cast::<__m128i>();
            // SAFETY: SSE2 is part of x86-64; the loads take any alignment, and four times sixteen bytes are the block.
            unsafe { [0, 1, 2, 3].map(|k| _mm_loadu_si128(at.add(k))) }
        }

        #[inline(always)]
        fn bits(quarters: [__m128i; 4]) -> u64 {
            let [a, b, c, d] = quarters.map(|q| {
                // SAFETY: SSE2 is part of x86-64.
                u64::from(unsafe { _mm_movemask_epi8(q) } as u32)
            });
            a | b << 16 | c << 32 | d << 48
        }
    }

    impl Look for Sse2 {
        #[inline(always)]
        fn ends(self, block: &Block) -> (u64, u64) {
            let quarters = Self::quarters(block);
            // SAFETY: SSE2 is part of x86-64.
            unsafe {
                let ends = quarters.map(|q| {
                    let turned = _mm_xor_si128(q, _mm_set1_epi8(TURN));
                    _mm_cmpeq_epi8(_mm_min_epu8(turned, _mm_set1_epi8(MOST)), turned)
                });
                let slashes = quarters.map(|q| _mm_cmpeq_epi8(q, _mm_set1_epi8(b'\\' as i8)));
                // In prose there is mostly neither.
                let [a, b, c, d] = [0, 1, 2, 3].map(|k| _mm_or_si128(ends[k], slashes[k]));
                if _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(a, b), _mm_or_si128(c, d))) == 0 {
                    return (0, 0);
                }
                (Self::bits(ends), Self::bits(slashes))
            }
        }

        #[inline(always)]
        fn quotes(self, block: &Block) -> u64 {
            // SAFETY: SSE2 is part of x86-64.
            Self::bits(Self::quarters(block).map(|q| unsafe { _mm_cmpeq_epi8(q, _mm_set1_epi8(b'"' as i8)) }))
        }

        #[inline(always)]
        fn beyond_ascii(self, block: &Block) -> bool {
            let [a, b, c, d] = Self::quarters(block);
            // SAFETY: SSE2 is part of x86-64.
            unsafe { _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(a, b), _mm_or_si128(c, d))) != 0 }
        }
    }

    /// Made by `found` alone.
    #[derive(Clone, Copy)]
    pub struct Avx2(());

    impl Avx2 {
        /// If the processor has AVX2, and BMI1 and BMI2, which came with it.
        #[inline]
        pub fn found() -> Option<Self> {
            let has = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2");
            has.then_some(Self(()))
        }

        #[inline(always)]
        fn halves(self, block: &Block) -> (__m256i, __m256i) {
            let at = block.as_ptr().cast::<__m256i>();
            // SAFETY: `self` says there is AVX2; the loads take any alignment, and twice 32 bytes are the block.
            unsafe { (_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))) }
        }

        #[inline(always)]
        fn bits(self, low: __m256i, high: __m256i) -> u64 {
            // SAFETY: `self` says there is AVX2.
            let (low, high) = unsafe { (_mm256_movemask_epi8(low), _mm256_movemask_epi8(high)) };
            u64::from(low as u32) | u64::from(high as u32) << 32
        }

        #[inline(always)]
        fn end(self, half: __m256i) -> __m256i {
            // SAFETY: `self` says there is AVX2.
            unsafe {
                let turned = _mm256_xor_si256(half, _mm256_set1_epi8(TURN));
                _mm256_cmpeq_epi8(_mm256_min_epu8(turned, _mm256_set1_epi8(MOST)), turned)
            }
        }

        #[inline(always)]
        fn equal(self, half: __m256i, c: u8) -> __m256i {
            // SAFETY: `self` says there is AVX2.
            unsafe { _mm256_cmpeq_epi8(half, _mm256_set1_epi8(c as i8)) }
        }
    }

    // No closures in here: what they call would not be inlined, for they do not take over the features of the function
    // that they come to lie in.
    impl Look for Avx2 {
        #[inline(always)]
        fn ends(self, block: &Block) -> (u64, u64) {
            let (low, high) = self.halves(block);
            let ends = self.bits(self.end(low), self.end(high));
            (ends, self.bits(self.equal(low, b'\\'), self.equal(high, b'\\')))
        }

        #[inline(always)]
        fn quotes(self, block: &Block) -> u64 {
            let (low, high) = self.halves(block);
            self.bits(self.equal(low, b'"'), self.equal(high, b'"'))
        }

        #[inline(always)]
        fn beyond_ascii(self, block: &Block) -> bool {
            let (low, high) = self.halves(block);
            // SAFETY: `self` says there is AVX2.
            unsafe { _mm256_movemask_epi8(_mm256_or_si256(low, high)) != 0 }
        }
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;
const SEVENS: u64 = 0x7f7f_7f7f_7f7f_7f7f;
const HIGHS: u64 = !SEVENS;

/// Eight bytes at a time, on any processor.
#[cfg_attr(target_arch = "x86_64", allow(dead_code))]
#[derive(Clone, Copy)]
pub struct Words;

impl Words {
    /// A bit for each byte that `f` makes zero.
    #[inline(always)]
    fn zeros(block: &Block, f: impl Fn(u64) -> u64) -> u64 {
        let mut out = 0;
        for (k, eight) in block.chunks_exact(8).enumerate() {
            let y = f(u64::from_le_bytes(eight.try_into().expect("eight bytes")));
            let zero = !(((y & SEVENS) + SEVENS) | y | SEVENS);
            // The high bit of byte n comes to bit 56 + n, and no two sums meet.
            out |= (zero.wrapping_mul(0x0002_0408_1020_4081) >> 56) << (8 * k);
        }
        out
    }
}

impl Look for Words {
    #[inline(always)]
    fn ends(self, block: &Block) -> (u64, u64) {
        let controls = Self::zeros(block, |w| w & (ONES * 0xe0));
        let slashes = Self::zeros(block, |w| w ^ (ONES * u64::from(b'\\')));
        (controls | self.quotes(block), slashes)
    }

    #[inline(always)]
    fn quotes(self, block: &Block) -> u64 {
        Self::zeros(block, |w| w ^ (ONES * u64::from(b'"')))
    }

    #[inline(always)]
    fn beyond_ascii(self, block: &Block) -> bool {
        block.chunks_exact(8).fold(0, |all, eight| {
            all | u64::from_le_bytes(eight.try_into().expect("eight bytes"))
        }) & HIGHS
            != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(look: impl Look, block: &Block) {
        let bits = |f: &dyn Fn(u8) -> bool| (0..WIDTH).fold(0, |all, k| all | u64::from(f(block[k])) << k);
        let ends = bits(&|c| c == b'"' || c < 0x20);
        assert_eq!(look.ends(block), (ends, bits(&|c| c == b'\\')), "{block:?}");
        assert_eq!(look.quotes(block), bits(&|c| c == b'"'), "{block:?}");
        assert_eq!(look.beyond_ascii(block), bits(&|c| c >= 0x80) != 0, "{block:?}");
    }

    #[test]
    fn every_way_sees_every_byte_at_every_place() {
        for place in 0..WIDTH {
            for c in 0..=255 {
                for around in [b'x', b'"', b'\\', b'!', b'#', 0x1f, 0x20, 0x7f, 0x80, 0xff] {
                    let mut block = [around; WIDTH];
                    block[place] = c;
                    check(Words, &block);
                    #[cfg(target_arch = "x86_64")]
                    {
                        check(Sse2, &block);
                        if let Some(look) = Avx2::found() {
                            check(look, &block);
                        }
                    }
                }
            }
        }
    }
}
