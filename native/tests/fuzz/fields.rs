//! The reader of a request's fields.

use _native::kernels::scan::scan;

use crate::chance::Chance;

pub fn fields(data: &[u8], _: &mut Chance) {
    let names = [b"model".to_vec(), b"stream".to_vec(), b"messages".to_vec()];
    let mut spans = [0; 6];
    if scan(data, &names, &mut spans).is_ok() {
        for span in spans.chunks(2).filter(|span| span[0] != usize::MAX) {
            assert!(span[0] < span[1] && span[1] <= data.len());
        }
    }
}
