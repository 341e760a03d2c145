//! Error pages that a config brings.

use bytes::Bytes;
use http::HeaderValue;
use memchr::memmem;
use trestle_config::Contents;
use trestle_config::model::ErrorPage;

use super::page::PLAIN;

/// Where a page wants the request's id.
const ID: &[u8] = b"${request.id}";

/// Compiled once.
#[derive(Debug)]
pub(crate) struct ErrorPages(Box<[Page]>);

#[derive(Debug)]
struct Page {
    statuses: (u16, u16),
    body: Bytes,
    kind: HeaderValue,
    /// Where the id goes.
    id_at: Box<[usize]>,
}

impl ErrorPages {
    /// A page that is not stored here is left out.
    pub(crate) fn compile(pages: &[ErrorPage], contents: &Contents) -> Option<Box<Self>> {
        let page = |page: &ErrorPage| {
            let body = contents.get(&page.page)?;
            let id_at = memmem::find_iter(&body, ID).collect();
            let kind = kind(&body);
            Some(Page { statuses: page.statuses, body: Bytes::from(body.into_owned()), kind, id_at })
        };
        let pages: Box<[Page]> = pages.iter().filter_map(page).collect();
        (!pages.is_empty()).then(|| Box::new(Self(pages)))
    }

    /// The page for this status, with what it is.
    pub(crate) fn page(&self, status: u16, id: &str) -> Option<(Bytes, HeaderValue)> {
        let page = self.0.iter().find(|page| (page.statuses.0..=page.statuses.1).contains(&status))?;
        if page.id_at.is_empty() {
            return Some((page.body.clone(), page.kind.clone()));
        }
        let mut filled = Vec::with_capacity(page.body.len() + id.len() * page.id_at.len());
        let mut from = 0;
        for at in &page.id_at {
            filled.extend_from_slice(&page.body[from..*at]);
            filled.extend_from_slice(id.as_bytes());
            from = at + ID.len();
        }
        filled.extend_from_slice(&page.body[from..]);
        Some((filled.into(), page.kind.clone()))
    }
}

/// By how it begins: files have no type.
fn kind(body: &[u8]) -> HeaderValue {
    match body.trim_ascii_start().first() {
        Some(b'<') => HeaderValue::from_static("text/html; charset=utf-8"),
        Some(b'{' | b'[') => HeaderValue::from_static("application/json"),
        _ => PLAIN,
    }
}

#[cfg(test)]
mod tests {
    use trestle_config::model::Content;

    use super::*;

    fn pages(all: &[((u16, u16), &str)]) -> Box<ErrorPages> {
        let page = |(statuses, text): &((u16, u16), &str)| ErrorPage {
            statuses: *statuses,
            page: Content::Inline((*text).into()),
        };
        let all: Vec<_> = all.iter().map(page).collect();
        ErrorPages::compile(&all, &Contents::default()).expect("pages")
    }

    #[test]
    fn the_first_page_that_fits_is_shown_with_the_id_in_it() {
        let pages = pages(&[((503, 503), "<p>${request.id} and ${request.id}</p>"), ((500, 599), "{}")]);
        let (body, kind) = pages.page(503, "abc").expect("a page");
        assert_eq!(
            (&body[..], kind.as_bytes()),
            (&b"<p>abc and abc</p>"[..], &b"text/html; charset=utf-8"[..])
        );
        let (body, kind) = pages.page(502, "abc").expect("a page");
        assert_eq!((&body[..], kind.as_bytes()), (&b"{}"[..], &b"application/json"[..]));
        assert!(pages.page(404, "abc").is_none());
    }
}
