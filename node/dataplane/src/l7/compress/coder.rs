//! Bytes in, coded bytes out: one stream of one algorithm.
//!
//! Levels are chosen for speed: what a response costs here, it costs each time. Windows are small, so that memory is
//! (RFC 9659 has clients take 8 MiB of zstd, RFC 7932 16 MiB of brotli).

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Write};

use brotli::CompressorWriter;
use brotli::enc::BrotliEncoderParams;
use flate2::write::ZlibEncoder;
use flate2::{Compress, Compression};
use trestle_config::model::Algorithm;
use zstd::stream::write::Encoder;

const GZIP_LEVEL: u32 = 5;
/// The binary logarithm of its bytes.
const GZIP_WINDOW: u8 = 15;
/// Of a thread. To make one takes longer than to compress a short response with it.
const GZIP_SPARES: usize = 4;
const BROTLI_QUALITY: i32 = 4;
const BROTLI_WINDOW: i32 = 16;
const BROTLI_BUFFER: usize = 4 << 10;
const ZSTD_LEVEL: i32 = 3;
const ZSTD_WINDOW: u32 = 17;

/// zlib's own writer, of a stream that has the header and the end of gzip.
type Gzip = Box<ZlibEncoder<Vec<u8>>>;

thread_local! {
    /// At their beginning.
    static SPARES: RefCell<Vec<Gzip>> = const { RefCell::new(Vec::new()) };
}

pub(crate) enum Coder {
    Gzip(Gzip),
    Brotli(Box<CompressorWriter<Vec<u8>>>),
    Zstd(Box<Encoder<'static, Vec<u8>>>),
}

impl fmt::Debug for Coder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip(_) => "Gzip",
            Self::Brotli(_) => "Brotli",
            Self::Zstd(_) => "Zstd",
        })
    }
}

/// Bytes of memory that a coder takes, with what it has coded and nobody has taken: as measured, and some.
pub(crate) fn weight(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::Gzip => 448 << 10,
        Algorithm::Brotli => 2 << 20,
        Algorithm::Zstd => 1800 << 10,
    }
}

impl Coder {
    /// `length`: of all that will come, if that is known; short bodies take less memory then.
    pub(crate) fn new(algorithm: Algorithm, length: Option<u64>) -> io::Result<Self> {
        Ok(match algorithm {
            Algorithm::Gzip => Self::Gzip(SPARES.with_borrow_mut(Vec::pop).unwrap_or_else(|| {
                let stream = Compress::new_gzip(Compression::new(GZIP_LEVEL), GZIP_WINDOW);
                Box::new(ZlibEncoder::new_with_compress(Vec::new(), stream))
            })),
            Algorithm::Brotli => {
                let params = BrotliEncoderParams {
                    quality: BROTLI_QUALITY,
                    lgwin: BROTLI_WINDOW,
                    size_hint: length
                        .map_or(0, |length| usize::try_from(length).unwrap_or(usize::MAX))
                        .min(1 << 19),
                    ..BrotliEncoderParams::default()
                };
                Self::Brotli(Box::new(CompressorWriter::with_params(Vec::new(), BROTLI_BUFFER, &params)))
            }
            Algorithm::Zstd => {
                let mut encoder = Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.window_log(ZSTD_WINDOW)?;
                encoder.set_pledged_src_size(length)?;
                Self::Zstd(Box::new(encoder))
            }
        })
    }

    pub(crate) fn code(&mut self, input: &[u8]) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.write_all(input),
            Self::Brotli(encoder) => encoder.write_all(input),
            Self::Zstd(encoder) => encoder.write_all(input),
        }
    }

    /// Lets [`Coder::take`] have all that a reader needs to decode what has been coded until now.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.flush(),
            Self::Brotli(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }

    /// Ends the stream; what is left of it, with all that was coded and not taken.
    pub(crate) fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(mut encoder) => {
                let rest = encoder.reset(Vec::new())?;
                SPARES.with_borrow_mut(|spares| {
                    if spares.len() < GZIP_SPARES {
                        spares.push(encoder);
                    }
                });
                Ok(rest)
            }
            Self::Brotli(encoder) => Ok(encoder.into_inner()),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }

    /// What has been coded; some of it may come later.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.coded())
    }

    /// Bytes that [`Coder::take`] would give.
    pub(crate) fn ready(&mut self) -> usize {
        self.coded().len()
    }

    fn coded(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    /// What a stream says, also of one that has not come to its end.
    pub(crate) fn decoded(algorithm: Algorithm, coded: &[u8]) -> (Vec<u8>, bool) {
        let mut plain = Vec::new();
        let read = match algorithm {
            Algorithm::Gzip => flate2::read::GzDecoder::new(coded).read_to_end(&mut plain),
            Algorithm::Brotli => brotli::Decompressor::new(coded, 4096).read_to_end(&mut plain),
            Algorithm::Zstd => {
                zstd::stream::read::Decoder::new(coded).expect("a decoder").read_to_end(&mut plain)
            }
        };
        (plain, read.is_ok())
    }

    fn lines(seed: u64, length: usize) -> Vec<u8> {
        let mut text = Vec::new();
        let mut n = seed;
        while text.len() < length {
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            text.extend_from_slice(format!("line {} of {}\n", n >> 40, n >> 58).as_bytes());
        }
        text.truncate(length);
        text
    }

    #[test]
    fn what_was_flushed_can_be_read_before_the_end() {
        for algorithm in Algorithm::ALL {
            let mut coder = Coder::new(algorithm, None).expect("a coder");
            let (mut coded, mut plain) = (Vec::new(), Vec::new());
            for round in 0..5 {
                let text = lines(round, 1000);
                coder.code(&text).expect("coded");
                coder.flush().expect("flushed");
                plain.extend(text);
                coded.extend(coder.take());
                let (read, whole) = decoded(algorithm, &coded);
                assert_eq!((read == plain, whole), (true, false), "{algorithm:?}, round {round}");
            }
            coded.extend(coder.finish().expect("an end"));
            assert_eq!(decoded(algorithm, &coded), (plain, true));
        }
    }

    #[test]
    fn nothing_is_a_stream_too() {
        for algorithm in Algorithm::ALL {
            let coded = Coder::new(algorithm, None).and_then(Coder::finish).expect("an end");
            assert_eq!(decoded(algorithm, &coded), (Vec::new(), true), "{algorithm:?}");
        }
    }

    #[test]
    fn text_becomes_a_third_and_a_coder_holds_on_to_little() {
        let text = lines(1, 1 << 20);
        for algorithm in Algorithm::ALL {
            let mut coder = Coder::new(algorithm, Some(text.len() as u64)).expect("a coder");
            let (mut coded, mut given) = (Vec::new(), 0);
            for (at, part) in text.chunks(16 << 10).enumerate() {
                coder.code(part).expect("coded");
                coded.extend(coder.take());
                given = (at + 1) * (16 << 10);
            }
            coded.extend(coder.finish().expect("an end"));
            assert!(coded.len() < given / 3, "{algorithm:?}: {}", coded.len());
            assert!(decoded(algorithm, &coded) == (text.clone(), true));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn however_it_comes_it_is_the_same_in_the_end(
            parts in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..3000), any::<bool>(), 1usize..40), 0..8),
            told in any::<bool>(),
        ) {
            let plain: Vec<u8> = parts.iter().flat_map(|(part, _, times)| part.repeat(*times)).collect();
            for algorithm in Algorithm::ALL {
                let mut coder = Coder::new(algorithm, told.then_some(plain.len() as u64)).expect("a coder");
                let mut coded = Vec::new();
                for (part, flushed, times) in &parts {
                    coder.code(&part.repeat(*times)).expect("coded");
                    if *flushed && !part.is_empty() {
                        coder.flush().expect("flushed");
                    }
                    coded.extend(coder.take());
                }
                coded.extend(coder.finish().expect("an end"));
                prop_assert!(decoded(algorithm, &coded) == (plain.clone(), true), "{:?}", algorithm);
            }
        }
    }
}
