//! Owns reading a blob while it still comes: as an HTTP body, from any byte on.
//!
//! Refuses to give the last byte before the whole is proven, and bytes of a beginning that was given up.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body_util::StreamBody;
use hyper::body::{Body, Frame};
use tokio::sync::watch;

use super::download::Progress;

/// Read at a time: a reader is as fast with it as with more, and several cost little memory.
const BLOCK: u64 = 64 << 10;

/// A body of an answer.
pub type Answer = Pin<Box<dyn Body<Data = Bytes, Error = io::Error>>>;

/// A part of a blob, for one reader.
pub struct Feed<O> {
    /// Opens what there is of the blob, once there is something.
    pub open: O,
    /// How far the blob is.
    pub progress: watch::Receiver<Progress>,
    /// The blob's bytes in all.
    pub size: u64,
    /// The first byte that is wanted.
    pub from: u64,
    /// The byte behind the last one.
    pub until: u64,
    /// Is told when the blob's last byte was read.
    pub delivered: Rc<Cell<bool>>,
}

impl<O: Fn() -> io::Result<File> + 'static> Feed<O> {
    /// The bytes as a body. It ends early, with an error, when the blob does not come.
    pub fn into_body(self) -> Answer {
        Box::pin(StreamBody::new(self.into_frames()))
    }

    fn into_frames(self) -> impl Stream<Item = io::Result<Frame<Bytes>>> {
        let begun = (self, None::<File>);
        stream::try_unfold(begun, |(mut feed, file)| async move {
            if feed.from >= feed.until {
                return Ok(None);
            }
            let ready = feed.ready().await?;
            let file = match file {
                Some(file) => file,
                None => (feed.open)()?,
            };
            if file.metadata()?.nlink() == 0 && !feed.is_whole() {
                // The next bytes would be another beginning's: the reader must come again.
                return Err(io::Error::other("what came was wrong and is fetched anew"));
            }
            let end = ready.min(feed.until).min(feed.from + BLOCK);
            let length = usize::try_from(end - feed.from).unwrap_or_default();
            let mut block = vec![0; length];
            file.read_exact_at(&mut block, feed.from)?;
            feed.from = end;
            if end == feed.size {
                feed.delivered.set(true);
            }
            Ok(Some((Frame::data(block.into()), (feed, Some(file)))))
        })
    }

    fn is_whole(&self) -> bool {
        *self.progress.borrow() == Progress::Whole
    }

    /// Waits until there is another byte to give; tells up to which one there is.
    async fn ready(&mut self) -> io::Result<u64> {
        let Self {
            progress,
            size,
            from,
            ..
        } = self;
        let ready = |progress: &Progress| match progress {
            Progress::Growing(bytes) => (*bytes).min(size.saturating_sub(1)),
            Progress::Whole => *size,
            Progress::Failed(_) => u64::MAX,
        };
        let reached = progress.wait_for(|progress| ready(progress) > *from).await;
        let reached = reached.map_err(|_| io::Error::other("nobody fetches it any more"))?;
        match &*reached {
            Progress::Failed(why) => Err(io::Error::other(why.clone())),
            other => Ok(ready(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::PathBuf;
    use std::task::Poll;

    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;

    use super::*;

    struct Growing {
        folder: tempfile::TempDir,
        told: watch::Sender<Progress>,
    }

    impl Growing {
        fn new() -> Self {
            Self {
                folder: tempfile::tempdir().unwrap(),
                told: watch::Sender::new(Progress::Growing(0)),
            }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("blob")
        }

        fn write(&self, bytes: &[u8]) {
            let mut file = File::options()
                .append(true)
                .create(true)
                .open(self.path())
                .unwrap();
            file.write_all(bytes).unwrap();
            let length = file.metadata().unwrap().len();
            self.told.send_replace(Progress::Growing(length));
        }

        fn read(&self, from: u64, until: u64, size: u64) -> Answer {
            let path = self.path();
            Feed {
                open: move || File::open(&path),
                progress: self.told.subscribe(),
                size,
                from,
                until,
                delivered: Rc::default(),
            }
            .into_body()
        }
    }

    type Next = Poll<Option<Result<Bytes, String>>>;

    fn next(body: &mut Answer) -> Next {
        let Some(frame) = body.frame().now_or_never() else {
            return Poll::Pending;
        };
        Poll::Ready(frame.map(|frame| {
            let bytes = frame.map(|frame| frame.into_data().unwrap());
            bytes.map_err(|error| error.to_string())
        }))
    }

    fn bytes(text: &str) -> Next {
        Poll::Ready(Some(Ok(Bytes::copy_from_slice(text.as_bytes()))))
    }

    fn failure(next: Next) -> String {
        match next {
            Poll::Ready(Some(Err(error))) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_last_byte_comes_when_the_whole_is_proven() {
        let blob = Growing::new();
        let mut body = blob.read(0, 6, 6);
        assert_eq!(next(&mut body), Poll::Pending);
        blob.write(b"abcd");
        assert_eq!(next(&mut body), bytes("abcd"));
        assert_eq!(next(&mut body), Poll::Pending);
        blob.write(b"ef");
        assert_eq!(next(&mut body), bytes("e"));
        assert_eq!(next(&mut body), Poll::Pending);
        blob.told.send_replace(Progress::Whole);
        assert_eq!(next(&mut body), bytes("f"));
        assert_eq!(next(&mut body), Poll::Ready(None));
    }

    #[test]
    fn a_part_of_it_is_that_part() {
        let blob = Growing::new();
        blob.write(b"abcdef");
        let mut body = blob.read(2, 4, 6);
        assert_eq!(next(&mut body), bytes("cd"));
        assert_eq!(next(&mut body), Poll::Ready(None));
    }

    #[test]
    fn what_does_not_come_breaks_off() {
        let blob = Growing::new();
        blob.write(b"abc");
        let mut body = blob.read(0, 6, 6);
        assert_eq!(next(&mut body), bytes("abc"));
        blob.told.send_replace(Progress::Failed("gone".to_owned()));
        assert_eq!(failure(next(&mut body)), "gone");
    }

    #[test]
    fn a_beginning_that_was_given_up_is_not_read_on() {
        let blob = Growing::new();
        blob.write(b"abc");
        let mut body = blob.read(0, 9, 9);
        assert_eq!(next(&mut body), bytes("abc"));
        std::fs::remove_file(blob.path()).unwrap();
        blob.write(b"other");
        let error = failure(next(&mut body));
        assert!(error.contains("anew"), "{error}");
    }

    #[test]
    fn nobody_waits_for_what_nobody_fetches() {
        let blob = Growing::new();
        let mut body = blob.read(0, 6, 6);
        assert_eq!(next(&mut body), Poll::Pending);
        drop(blob);
        assert!(failure(next(&mut body)).contains("nobody"));
    }
}
