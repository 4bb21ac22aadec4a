//! The reader of one chunk.

use _native::kernels::chunk::Chunk;

use crate::chance::Chance;

pub fn chunk(data: &[u8], _: &mut Chance) {
    if let Ok(chunk) = Chunk::read(data) {
        assert!(chunk.content <= data.len());
        assert!(chunk.with_content as usize <= chunk.choices);
        for part in [chunk.usage, chunk.error, chunk.finish.map(|f| f.0)]
            .into_iter()
            .flatten()
        {
            assert!(part.start <= part.end && part.end <= data.len());
        }
    }
}
