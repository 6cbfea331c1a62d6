//! Owns the list of a repository's tags, page by page (distribution specification, "listing tags").

use holdfast_proto::image::{Reference, Repository};
use reqwest::Method;
use serde::Deserialize;

use crate::cache::Key;
use crate::client::{Client, Question};
use crate::error::RegistryError;
use crate::settings::Identity;

/// Tags of one page: what registries give at most.
const PAGE: usize = 1_000;
/// Pages that are read: beyond it a repository has more tags than a person would look through.
const MAX_PAGES: usize = 50;
/// Room for registries that answer with all tags on one page, and with details of each.
const MAX_PAGE_BYTES: usize = 8 << 20;
/// Tags in all that are read.
const MAX_TAGS: usize = PAGE * MAX_PAGES;

#[derive(Deserialize)]
struct Page {
    /// `null` for a repository whose tags are all gone.
    tags: Option<Vec<String>>,
}

impl Client {
    /// Every tag of a repository, in no order that means something, each once; one question at a time
    /// for each repository, and answers kept for the TTL.
    ///
    /// Some registries sort, some do not; some ignore the size of a page, some leave out where the next
    /// one is. A list of more than 50 pages or 50,000 tags is cut off there, and texts that are no tags
    /// are left out.
    pub async fn tags(
        &self,
        repository: &Repository,
        who: Option<&Identity>,
    ) -> Result<Vec<String>, RegistryError> {
        let key = Key {
            repository: repository.clone(),
            tag: None,
            who: who.map(|who| who.id.clone()),
        };
        self.tags
            .get(key, |_| self.ask_for_tags(repository, who))
            .await
    }

    async fn ask_for_tags(
        &self,
        repository: &Repository,
        who: Option<&Identity>,
    ) -> Result<Vec<String>, RegistryError> {
        let mut all = std::collections::BTreeSet::new();
        let mut name = format!("list?n={PAGE}");
        for _ in 0..MAX_PAGES {
            let question = Question {
                repository,
                who,
                method: &Method::GET,
                kind: "tags",
                name: &name,
                accept: "application/json",
                if_none_match: None,
                streams_from: None,
                limit: MAX_PAGE_BYTES,
            };
            let fetched = self.fetch(&question).await?;
            let page: Page =
                serde_json::from_slice(&fetched.body).map_err(|_| RegistryError::BadManifest {
                    what: format!("the list of tags of {repository}"),
                    why: "it is not a list".to_owned(),
                })?;
            let before = all.len();
            let tags = page.tags.unwrap_or_default().into_iter();
            all.extend(tags.filter(|tag| is_tag(tag)).take(MAX_TAGS - before));
            let next = fetched.link.as_deref().and_then(next_page);
            match next {
                // A page that brings nothing new would bring it for ever.
                Some(query) if all.len() > before => name = format!("list?{query}"),
                Some(_) | None => break,
            }
        }
        Ok(all.into_iter().collect())
    }
}

/// The grammar of references knows what a tag is.
fn is_tag(text: &str) -> bool {
    format!("any:{text}")
        .parse::<Reference>()
        .is_ok_and(|reference| reference.digest().is_none())
}

/// The query of the next page: only that part of the link counts, so that no registry sends us anywhere.
fn next_page(link: &str) -> Option<String> {
    // RFC 8288: `<target>; rel="next", <target>; …`; a target has no `>`.
    let mut rest = link;
    while let Some((_, after)) = rest.split_once('<') {
        let (target, after) = after.split_once('>')?;
        let (parameters, after) = after.split_once(',').unwrap_or((after, ""));
        let is_next = parameters.split(';').any(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = value.trim().trim_matches('"');
            name.trim().eq_ignore_ascii_case("rel")
                && value
                    .split_whitespace()
                    .any(|rel| rel.eq_ignore_ascii_case("next"))
        });
        if is_next {
            let (_, query) = target.split_once('?')?;
            let query = query.split('#').next().unwrap_or_default();
            return (!query.is_empty()).then(|| query.to_owned());
        }
        rest = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_where_the_link_says_and_nowhere_else() {
        for (link, expected) in [
            (
                r#"</v2/a/tags/list?n=2&last=b>; rel="next""#,
                Some("n=2&last=b"),
            ),
            ("</v2/a/tags/list?last=b>;rel=next", Some("last=b")),
            (
                r#"<https://evil.example/v2/a/tags/list?last=b>; rel="next""#,
                Some("last=b"),
            ),
            (r#"<?last=c>; title="x"; REL="prev next""#, Some("last=c")),
            (
                r#"</a?x=1>; rel="first", </a?x=2>; rel="next""#,
                Some("x=2"),
            ),
            (r#"</v2/a/tags/list>; rel="next""#, None),
            (r#"</a?x=1>; rel="last""#, None),
            ("nonsense", None),
            ("<", None),
            ("<open", None),
            ("", None),
        ] {
            assert_eq!(next_page(link).as_deref(), expected, "{link}");
        }
    }
}
