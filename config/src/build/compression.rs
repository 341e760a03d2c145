//! Compression of responses, as it stands at a listener, a route or a rule.

use crate::model::{Algorithm, Compression};
use crate::value::{Fields, Kind, Value};

pub(super) fn compression(fields: &Fields) -> Compression {
    let mut compression = Compression { on: fields.word("mode") == Some("on"), ..Compression::default() };
    if let Some(written) = fields.list("algorithms") {
        let named = |value: &Value| match &value.kind {
            Kind::Word(word) => Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == *word),
            _ => None,
        };
        compression.algorithms.clear();
        for algorithm in written.iter().filter_map(named) {
            if !compression.algorithms.contains(&algorithm) {
                compression.algorithms.push(algorithm);
            }
        }
    }
    super::set(&mut compression.min, fields.size("min"));
    if let Some(types) = fields.list("types") {
        compression.types = types.iter().filter_map(Value::as_text).map(str::to_owned).collect();
    }
    compression
}
