//! Error codes of HTTP/2 (RFC 9113, section 7), as labels.

macro_rules! codes {
    ($($name:ident => $label:literal;)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum H2Code { $($name,)+ }

        impl H2Code {
            pub(crate) const ALL: &'static [H2Code] = &[$(H2Code::$name),+];
            pub(crate) const COUNT: usize = Self::ALL.len();

            pub(crate) fn label(self) -> &'static str {
                match self { $(H2Code::$name => $label,)+ }
            }
        }
    };
}

// In the order of their numbers, from 0.
codes! {
    NoError => "no_error";
    ProtocolError => "protocol_error";
    InternalError => "internal_error";
    FlowControlError => "flow_control_error";
    SettingsTimeout => "settings_timeout";
    StreamClosed => "stream_closed";
    FrameSizeError => "frame_size_error";
    RefusedStream => "refused_stream";
    Cancel => "cancel";
    CompressionError => "compression_error";
    ConnectError => "connect_error";
    EnhanceYourCalm => "enhance_your_calm";
    InadequateSecurity => "inadequate_security";
    Http11Required => "http_1_1_required";
    Other => "other";
}

impl H2Code {
    pub(crate) fn of(code: u32) -> Self {
        let known = usize::try_from(code).ok().and_then(|at| Self::ALL.get(at));
        known.copied().unwrap_or(Self::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_standard() {
        for (number, label) in [
            (0, "no_error"),
            (1, "protocol_error"),
            (5, "stream_closed"),
            (9, "compression_error"),
            (11, "enhance_your_calm"),
            (13, "http_1_1_required"),
            (14, "other"),
            (u32::MAX, "other"),
        ] {
            assert_eq!(H2Code::of(number).label(), label);
        }
    }
}
