//! The framing guard in front of the server.

use _native::engine::framing::Guard;

use crate::chance::{pieces, Chance};

pub fn guarded(pieces: &[Vec<u8>]) -> (usize, bool, bool) {
    let mut guard = Guard::default();
    let mut passed = 0;
    for piece in pieces {
        let mut data = piece.clone();
        let n = guard.pass(&mut data);
        assert!(n <= piece.len());
        passed += n;
        if guard.broken() {
            // What passes is what came, but for the byte that ends a bad head.
            assert!(n == 0 || data[..n - 1] == piece[..n - 1]);
            break;
        }
        assert_eq!((n, &data), (piece.len(), piece));
    }
    (passed, guard.broken(), guard.at_rest())
}

pub fn guard(data: &[u8], chance: &mut Chance) {
    assert_eq!(guarded(&[data.to_vec()]), guarded(&pieces(chance, data)));
}
