//! Owns who may do what: principals, roles, permissions and the one table that joins them.

use holdfast_proto::id::DeviceId;
pub use holdfast_proto::operator::Role;

/// All roles, the weakest first; each includes the ones before it.
pub const ROLES: [Role; 3] = [Role::Viewer, Role::Operator, Role::Admin];

/// The word for a role, on the wire and in the store.
pub const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    }
}

/// The role with this name.
pub fn role_named(name: &str) -> Option<Role> {
    ROLES.into_iter().find(|role| role_name(*role) == name)
}

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// Nobody we know: no token, or one that is wrong, expired or revoked.
    Anonymous,
    /// A device with its own token.
    Device(DeviceId),
    /// A person or program with an operator token.
    Operator {
        /// Number of the token.
        token: i64,
        /// Name of the token.
        name: String,
        /// What it may do.
        role: Role,
    },
}

/// What a route asks of whoever calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Nothing.
    Public,
    /// The route judges a credential of its own (enrolment key, webhook secret).
    OwnCredential,
    /// To be the very device that the path names.
    OwnDevice,
    /// To be an operator of any role.
    Read,
    /// To be an operator who may change targets and devices.
    Operate,
    /// To be an operator who may hand out access.
    Administer,
}

/// The answer to "may they?".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Allowed,
    /// Say who you are first (401).
    Unauthenticated,
    /// You are known, and this is not for you (403).
    Forbidden,
    /// You shall not even learn that it is there (404).
    Hidden,
}

/// Judges one request; `device` is the device in the path, if the path names a valid one.
pub fn judge(principal: &Principal, permission: Permission, device: Option<DeviceId>) -> Verdict {
    let least = match permission {
        Permission::Public | Permission::OwnCredential => return Verdict::Allowed,
        Permission::OwnDevice => {
            return match principal {
                Principal::Anonymous => Verdict::Unauthenticated,
                Principal::Device(own) if Some(*own) == device => Verdict::Allowed,
                Principal::Device(_) => Verdict::Hidden,
                Principal::Operator { .. } => Verdict::Forbidden,
            };
        }
        Permission::Read => Role::Viewer,
        Permission::Operate => Role::Operator,
        Permission::Administer => Role::Admin,
    };
    match principal {
        Principal::Anonymous => Verdict::Unauthenticated,
        Principal::Device(_) => Verdict::Hidden,
        Principal::Operator { role, .. } if *role >= least => Verdict::Allowed,
        Principal::Operator { .. } => Verdict::Forbidden,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(n: u8) -> DeviceId {
        DeviceId::from_random([n; 16])
    }

    fn operator(role: Role) -> Principal {
        Principal::Operator {
            token: 1,
            name: "ci".into(),
            role,
        }
    }

    #[test]
    fn a_device_reaches_only_itself() {
        let me = Principal::Device(device(1));
        assert_eq!(
            judge(&me, Permission::OwnDevice, Some(device(1))),
            Verdict::Allowed
        );
        for (permission, path) in [
            (Permission::OwnDevice, Some(device(2))),
            (Permission::OwnDevice, None),
            (Permission::Read, Some(device(1))),
            (Permission::Operate, None),
            (Permission::Administer, None),
        ] {
            assert_eq!(judge(&me, permission, path), Verdict::Hidden);
        }
    }

    #[test]
    fn an_operator_never_passes_for_a_device() {
        for role in ROLES {
            let verdict = judge(&operator(role), Permission::OwnDevice, Some(device(1)));
            assert_eq!(verdict, Verdict::Forbidden);
        }
    }

    #[test]
    fn each_role_includes_the_ones_before_it() {
        let allowed = |role, permission| judge(&operator(role), permission, None);
        for (role, expected) in [
            (
                Role::Viewer,
                [Verdict::Allowed, Verdict::Forbidden, Verdict::Forbidden],
            ),
            (
                Role::Operator,
                [Verdict::Allowed, Verdict::Allowed, Verdict::Forbidden],
            ),
            (
                Role::Admin,
                [Verdict::Allowed, Verdict::Allowed, Verdict::Allowed],
            ),
        ] {
            let found = [
                Permission::Read,
                Permission::Operate,
                Permission::Administer,
            ]
            .map(|permission| allowed(role, permission));
            assert_eq!(found, expected, "{role:?}");
        }
    }

    #[test]
    fn nobody_gets_in_without_a_token() {
        for permission in [
            Permission::OwnDevice,
            Permission::Read,
            Permission::Operate,
            Permission::Administer,
        ] {
            assert_eq!(
                judge(&Principal::Anonymous, permission, Some(device(1))),
                Verdict::Unauthenticated
            );
        }
    }

    #[test]
    fn a_role_has_one_spelling() {
        assert_eq!(role_named("admin"), Some(Role::Admin));
        assert_eq!(role_named("Admin"), None);
    }
}
