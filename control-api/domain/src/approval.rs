//! Owns what may run: how a push or a target is judged by the images that people approved.
//!
//! Refuses to take a name for another: every image is compared in its one canonical form.

use holdfast_proto::image::Repository;

/// What people decided about an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    /// Nobody decided yet.
    Pending,
    /// It may run.
    Approved,
    /// It may not.
    Rejected,
}

/// A tag of an approved image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownTag {
    /// It is not to be rolled out any more.
    pub is_deprecated: bool,
}

/// Images that need nobody's approval: everything below a namespace of one registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Internal {
    /// The registry, in its canonical form.
    pub registry: String,
    /// The first parts of the path, without a slash at the end.
    pub namespace: String,
}

impl Internal {
    /// Whether the repository is one of these.
    pub fn has(&self, repository: &Repository) -> bool {
        let rest = repository.path().strip_prefix(self.namespace.as_str());
        repository.registry() == self.registry && rest.is_some_and(|rest| rest.starts_with('/'))
    }
}

/// Whether targets that people set may name images that may not be rolled out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetRule {
    /// They may: only rollouts are judged.
    #[default]
    Open,
    /// They may not, unless somebody says so each time; that is written down.
    Overrule,
    /// They may not.
    Closed,
}

/// Whether an image may be rolled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may: it is one of our own.
    Internal,
    /// It may.
    Approved {
        /// The tag was not known yet: it is added, and not recommended.
        adds_tag: bool,
    },
    /// It may not, and nobody was asked yet: somebody is asked now.
    Unknown,
    /// It may not: somebody was asked, or said no.
    Refused(Refusal),
}

/// Why an image that is known may not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody decided yet.
    Pending,
    /// Somebody said no.
    Rejected,
    /// The image may run, this tag of it not any more.
    TagDeprecated,
}

/// Judges an image; the order is that of the contract's table.
pub fn judge(
    repository: &Repository,
    internal: &[Internal],
    approval: Option<Approval>,
    tag: Option<KnownTag>,
) -> Verdict {
    if internal.iter().any(|own| own.has(repository)) {
        return Verdict::Internal;
    }
    match (approval, tag) {
        (None, _) => Verdict::Unknown,
        (Some(Approval::Pending), _) => Verdict::Refused(Refusal::Pending),
        (Some(Approval::Rejected), _) => Verdict::Refused(Refusal::Rejected),
        (
            Some(Approval::Approved),
            Some(KnownTag {
                is_deprecated: true,
            }),
        ) => Verdict::Refused(Refusal::TagDeprecated),
        (Some(Approval::Approved), tag) => Verdict::Approved {
            adds_tag: tag.is_none(),
        },
    }
}

impl Verdict {
    /// Whether the image may run.
    pub const fn may_run(self) -> bool {
        match self {
            Self::Internal | Self::Approved { .. } => true,
            Self::Unknown | Self::Refused(_) => false,
        }
    }

    /// The verdict's word on the wire.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Approved { .. } => "approved",
            Self::Unknown => "unknown",
            Self::Refused(Refusal::Pending) => "pending",
            Self::Refused(Refusal::Rejected) => "rejected",
            Self::Refused(Refusal::TagDeprecated) => "tag_deprecated",
        }
    }

    /// The refusal's short name; none when the image may run.
    pub const fn error(self) -> Option<&'static str> {
        match self {
            Self::Internal | Self::Approved { .. } => None,
            Self::Unknown | Self::Refused(Refusal::Pending | Refusal::Rejected) => {
                Some("Image not approved")
            }
            Self::Refused(Refusal::TagDeprecated) => Some("Tag deprecated"),
        }
    }

    /// Why, of this image; none when it may run.
    pub fn why(self, repository: &Repository, tag: &str) -> Option<String> {
        let name = repository.familiar();
        match self {
            Self::Internal | Self::Approved { .. } => None,
            Self::Unknown => Some(format!("{name} is not among the images that may run")),
            Self::Refused(Refusal::Pending) => Some(format!("nobody has approved {name} yet")),
            Self::Refused(Refusal::Rejected) => Some(format!("{name} was rejected")),
            Self::Refused(Refusal::TagDeprecated) => {
                Some(format!("the tag {tag} of {name} is deprecated"))
            }
        }
    }
}

/// What one more person's approval makes of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quorum {
    /// The image is approved.
    Reached,
    /// Somebody else has to approve, too.
    Waits,
    /// This person approved already, and does not count twice.
    Same,
}

/// Counts an approval by `who` to those that were given `so_far`.
pub fn count(so_far: &[String], who: &str, two_person: bool) -> Quorum {
    if !two_person {
        Quorum::Reached
    } else if so_far.iter().any(|one| one == who) {
        Quorum::Same
    } else if so_far.is_empty() {
        Quorum::Waits
    } else {
        Quorum::Reached
    }
}

#[cfg(test)]
mod tests {
    use holdfast_proto::image::Reference;

    use super::*;

    fn verdict(image: &str, approval: Option<Approval>, tag: Option<KnownTag>) -> Verdict {
        let internal = [Internal {
            registry: "docker.io".to_owned(),
            namespace: "iotistic".to_owned(),
        }];
        let reference: Reference = image.parse().unwrap();
        judge(reference.repository(), &internal, approval, tag)
    }

    #[test]
    fn every_row_of_the_table() {
        let good = Some(KnownTag {
            is_deprecated: false,
        });
        let old = Some(KnownTag {
            is_deprecated: true,
        });
        let approved = Some(Approval::Approved);
        for (image, approval, tag, expected) in [
            ("iotistic/agent", None, None, Verdict::Internal),
            (
                "iotistic/agent",
                Some(Approval::Rejected),
                old,
                Verdict::Internal,
            ),
            ("redis", None, None, Verdict::Unknown),
            (
                "redis",
                Some(Approval::Pending),
                good,
                Verdict::Refused(Refusal::Pending),
            ),
            (
                "redis",
                Some(Approval::Rejected),
                good,
                Verdict::Refused(Refusal::Rejected),
            ),
            (
                "redis",
                approved,
                old,
                Verdict::Refused(Refusal::TagDeprecated),
            ),
            (
                "redis",
                approved,
                None,
                Verdict::Approved { adds_tag: true },
            ),
            (
                "redis",
                approved,
                good,
                Verdict::Approved { adds_tag: false },
            ),
        ] {
            assert_eq!(verdict(image, approval, tag), expected, "{image}");
        }
    }

    #[test]
    fn what_may_not_run_says_why_and_what_may_does_not() {
        let repository: Repository = "redis".parse().unwrap();
        for (verdict, error) in [
            (Verdict::Internal, None),
            (Verdict::Approved { adds_tag: true }, None),
            (Verdict::Unknown, Some("Image not approved")),
            (
                Verdict::Refused(Refusal::Pending),
                Some("Image not approved"),
            ),
            (
                Verdict::Refused(Refusal::Rejected),
                Some("Image not approved"),
            ),
            (
                Verdict::Refused(Refusal::TagDeprecated),
                Some("Tag deprecated"),
            ),
        ] {
            assert_eq!(verdict.error(), error);
            assert_eq!(verdict.may_run(), error.is_none());
            assert_eq!(verdict.why(&repository, "7").is_some(), error.is_some());
        }
    }

    #[test]
    fn two_people_are_two() {
        let given = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        for (so_far, who, two_person, expected) in [
            (given(&[]), "ann", false, Quorum::Reached),
            (given(&["ann"]), "ann", false, Quorum::Reached),
            (given(&[]), "ann", true, Quorum::Waits),
            (given(&["ann"]), "ann", true, Quorum::Same),
            (given(&["ann"]), "bob", true, Quorum::Reached),
        ] {
            assert_eq!(
                count(&so_far, who, two_person),
                expected,
                "{so_far:?} {who}"
            );
        }
    }

    #[test]
    fn a_name_that_only_looks_like_ours_is_not_ours() {
        for image in [
            "evil.example/iotistic/agent",
            "iotistic-evil/agent",
            "iotisticagent",
            "iotistic",
            "docker.io/library/iotistic",
            "x/iotistic/agent",
            "Iotistic/agent",
        ] {
            assert_eq!(verdict(image, None, None), Verdict::Unknown, "{image}");
        }
        assert_eq!(
            verdict("index.docker.io/iotistic/agent", None, None),
            Verdict::Internal
        );
    }
}
