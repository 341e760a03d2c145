//! A request, as rules see it.

use std::borrow::Cow;

use crate::variable::Collection;

/// What a request is made of, taken apart by whoever received it.
#[derive(Debug, Default)]
pub struct Request<'a> {
    pub client: Cow<'a, str>,
    pub method: &'a str,
    /// As it is forwarded.
    pub path: &'a str,
    pub query: Option<&'a str>,
    /// Such as `HTTP/1.1`.
    pub protocol: &'a str,
    pub id: &'a str,
    /// Host first: of HTTP/2 it is no field.
    pub headers: Vec<(&'a str, &'a [u8])>,
    /// Cookies, parameters of query and body, and what is in documents, decoded.
    pub args: Vec<Arg<'a>>,
    pub body: &'a [u8],
    pub processor: Processor,
}

/// One value that has a name.
#[derive(Debug)]
pub struct Arg<'a> {
    pub source: Source,
    pub name: Cow<'a, [u8]>,
    pub value: Cow<'a, [u8]>,
}

/// Where a value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The request's line, or all of it.
    Line,
    Query,
    Header,
    Cookie,
    Body,
    /// The value is a file's name, the name its field's.
    File,
    /// The value is a field of a part's header, as `name: value`, the name that of the part.
    PartHeader,
    /// Text and attributes of an XML document.
    Xml,
    /// What rules computed.
    Computed,
}

/// How a body was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Processor {
    #[default]
    None,
    Urlencoded,
    Multipart,
    Json,
    Xml,
}

impl Processor {
    fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Urlencoded => "URLENCODED",
            Self::Multipart => "MULTIPART",
            Self::Json => "JSON",
            Self::Xml => "XML",
        }
    }
}

/// A value of the request, for rules.
#[derive(Debug)]
pub(crate) struct Item<'a> {
    pub(crate) collection: Collection,
    pub(crate) source: Source,
    pub(crate) name: Cow<'a, [u8]>,
    pub(crate) value: Cow<'a, [u8]>,
}

/// All values, those of one collection in a row.
pub(crate) fn items<'a>(request: &'a Request<'_>) -> Vec<Item<'a>> {
    use Collection as C;
    let mut items = Vec::with_capacity(request.args.len() * 2 + request.headers.len() * 2 + 20);
    let mut add = |collection, source, name: Cow<'a, [u8]>, value: Cow<'a, [u8]>| {
        items.push(Item { collection, source, name, value });
    };
    let none = || Cow::Borrowed(b"".as_slice());
    let text = |text: String| Cow::Owned(text.into_bytes());
    let query = request.query.map_or(String::new(), |query| format!("?{query}"));
    let uri = format!("{}{query}", request.path);
    let line = format!("{} {uri} {}", request.method, request.protocol);
    let filename = percent(request.path.as_bytes());
    let basename = filename.rsplit(|byte| matches!(byte, b'/' | b'\\')).next().unwrap_or_default().to_vec();
    let sized = |sources: &[Source]| {
        let args = request.args.iter().filter(|arg| sources.contains(&arg.source));
        args.map(|arg| arg.name.len() + arg.value.len()).sum::<usize>().to_string()
    };
    add(C::Line, Source::Line, none(), text(line));
    add(C::UriRaw, Source::Line, none(), text(uri.clone()));
    add(C::Uri, Source::Line, none(), text(uri));
    add(C::Filename, Source::Line, none(), filename);
    add(C::Basename, Source::Line, none(), Cow::Owned(basename));
    add(C::Method, Source::Line, none(), request.method.as_bytes().into());
    add(C::Protocol, Source::Line, none(), request.protocol.as_bytes().into());
    add(C::Query, Source::Line, none(), request.query.unwrap_or_default().as_bytes().into());
    add(C::Body, Source::Body, none(), request.body.into());
    add(C::BodyLength, Source::Body, none(), text(request.body.len().to_string()));
    add(C::BodyProcessor, Source::Body, none(), request.processor.name().as_bytes().into());
    add(C::Zero, Source::Line, none(), b"0".as_slice().into());
    add(C::ArgsSize, Source::Line, none(), text(sized(&[Source::Query, Source::Body])));
    add(C::FilesSize, Source::Line, none(), b"0".as_slice().into());
    add(C::RemoteAddr, Source::Line, none(), request.client.as_bytes().into());
    add(C::UniqueId, Source::Line, none(), request.id.as_bytes().into());
    let host = request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    let host = host.map_or(b"".as_slice(), |(_, value)| value);
    let host = host.split(|byte| *byte == b':').next().unwrap_or_default();
    add(C::ServerName, Source::Line, none(), host.into());
    for (name, value) in &request.headers {
        add(C::Headers, Source::Header, name.as_bytes().into(), (*value).into());
    }
    for (name, _) in &request.headers {
        add(C::HeadersNames, Source::Header, name.as_bytes().into(), name.as_bytes().into());
    }
    let kinds = [
        (Source::Cookie, C::Cookies, Some(C::CookiesNames)),
        (Source::Query, C::ArgsGet, Some(C::ArgsGetNames)),
        (Source::Body, C::ArgsPost, Some(C::ArgsPostNames)),
        (Source::File, C::Files, Some(C::FilesNames)),
        (Source::PartHeader, C::PartHeaders, None),
        (Source::Xml, C::Xml, None),
    ];
    for (source, values, names) in kinds {
        let those = || request.args.iter().filter(|arg| arg.source == source);
        for arg in those() {
            add(values, source, (&*arg.name).into(), (&*arg.value).into());
        }
        if let Some(names) = names {
            for arg in those() {
                add(names, source, (&*arg.name).into(), (&*arg.name).into());
            }
        }
    }
    items
}

/// Decoded once, as a path is.
fn percent(text: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'%', text).is_none() {
        return text.into();
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digit = |at| after.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out.into()
}
