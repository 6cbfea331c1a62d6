//! Owns what machines install the agent from: the script with this server's address in it, and the files of a
//! release from a folder, so that sites without internet need nobody else.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::path::Path as FilePath;
use std::time::UNIX_EPOCH;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::app::Shared;
use crate::config::{Install, is_url};
use crate::http::problem::Refusal;

/// The script as it is without a server.
const SCRIPT: &str = include_str!("../../../systemd/install.sh");
const SCRIPT_MEDIA_TYPE: &str = "text/x-shellscript";
const FILE_MEDIA_TYPE: &str = "application/octet-stream";
/// Read at a time: a download holds no more in memory, and no thread while its client is slow.
const CHUNK: usize = 64 * 1024;
/// Names of releases' files are shorter.
const LONGEST_NAME: usize = 128;

/// The script that installs the agent and enrols the machine with this server.
///
/// `curl -fsSL https://holdfast.example/install.sh | sudo sh -s -- --key hfk_…`
#[utoipa::path(
    get, path = "/install.sh", tag = "system",
    responses((status = 200, description = "A POSIX shell script", body = String, content_type = "text/x-shellscript"))
)]
pub async fn script(State(app): State<Shared>, headers: HeaderMap) -> Response {
    let kind = HeaderValue::from_static(SCRIPT_MEDIA_TYPE);
    let text = filled(&app.install, &headers);
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// A file of the release that this server hands out: a package, a tarball, their checksums, the signature.
#[utoipa::path(
    get, path = "/releases/{file}", tag = "system",
    params(("file" = String, Path, description = "Its name, such as SHA256SUMS")),
    responses(
        (status = 200, description = "The file", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 304, description = "The caller has it: `If-None-Match` names its entity tag"),
    )
)]
pub async fn release(
    State(app): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let folder = app.install.releases.as_deref();
    let folder = folder.filter(|_| is_name(&name)).ok_or_else(absent)?;
    let path = folder.join(&name);
    let opened = blocking(move || open(&path)).await;
    let (file, meta) = match opened {
        Ok(Some(opened)) => opened,
        Ok(None) => return Err(absent()),
        Err(error) => {
            tracing::error!(file = name, error = %error, "a file of the release cannot be read");
            return Err(Refusal::internal());
        }
    };
    let tag = entity_tag(&meta);
    let known = headers.get(header::IF_NONE_MATCH);
    if known.is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let answer_headers: [(HeaderName, HeaderValue); 4] = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static(FILE_MEDIA_TYPE),
        ),
        (header::CONTENT_LENGTH, meta.len().into()),
        // Asked again each time: a folder's SHA256SUMS is another one with the next release.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::ETAG, tag),
    ];
    // The length was promised: what is written to the file from now on is not sent.
    let chunks = stream::try_unfold((file, meta.len()), |(file, left)| async move {
        if left == 0 {
            return Ok::<_, io::Error>(None);
        }
        let (file, chunk) = blocking(move || read_chunk(file, left)).await?;
        let left = left.saturating_sub(chunk.len() as u64);
        Ok(Some((chunk, (file, left))))
    });
    Ok((answer_headers, Body::from_stream(chunks)).into_response())
}

fn absent() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "not_found",
        "this server hands out no such file",
    )
}

/// Letters that names of releases' files have: no separators, nothing hidden, no way up.
fn is_name(name: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '~');
    !name.is_empty()
        && name.len() <= LONGEST_NAME
        && !name.starts_with('.')
        && name.chars().all(is_letter)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

/// The file, unless it is none or is not there.
fn open(path: &FilePath) -> io::Result<Option<(File, Metadata)>> {
    // Looked at before it is opened: opening a pipe would wait for its other end.
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => return Ok(None),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let file = File::open(path)?;
    let meta = file.metadata()?;
    Ok(meta.is_file().then_some((file, meta)))
}

fn read_chunk(mut file: File, left: u64) -> io::Result<(File, Bytes)> {
    let most = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
    let mut chunk = vec![0; most];
    let len = file.read(&mut chunk)?;
    if len == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    chunk.truncate(len);
    Ok((file, chunk.into()))
}

/// Changes whenever the file is written or replaced.
fn entity_tag(meta: &Metadata) -> HeaderValue {
    let written = meta.modified().ok();
    let written = written.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let written = written.map_or(0, |since| since.as_nanos());
    HeaderValue::try_from(format!("\"{:x}-{written:x}\"", meta.len()))
        .unwrap_or(HeaderValue::from_static("\"\""))
}

/// The script with what this server knows in the places that it has for it.
fn filled(install: &Install, headers: &HeaderMap) -> String {
    let server = install.public_url.clone().or_else(|| asked_at(headers));
    let server = server.unwrap_or_default();
    let releases = match &install.releases {
        Some(_) if !server.is_empty() => format!("{server}/releases"),
        // Without a folder of its own the script asks the project's page.
        Some(_) | None => String::new(),
    };
    SCRIPT
        .replacen("'@SERVER@'", &quoted(&server), 1)
        .replacen("'@BASE_URL@'", &quoted(&releases), 1)
        .replacen(
            "'@RELEASE_KEY@'",
            &quoted(install.key.as_deref().unwrap_or_default()),
            1,
        )
}

/// In a shell's quotes. Values were checked to hold none; one that does becomes nothing.
fn quoted(value: &str) -> String {
    let value = if value.contains('\'') { "" } else { value };
    format!("'{value}'")
}

/// The address that this request came to, as far as a script may hold it. A proxy that ends TLS says so.
fn asked_at(headers: &HeaderMap) -> Option<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let scheme = match text("x-forwarded-proto") {
        Some("https") => "https",
        Some(_) | None => "http",
    };
    let url = format!("{scheme}://{}", text("host")?);
    (is_url(&url) && !url.ends_with('/')).then_some(url)
}
