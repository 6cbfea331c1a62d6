//! Target documents as a list of facts.

use super::*;
use crate::image::{Digest, Expected, ManifestDigest, Resolution, ResolutionStatus};
use crate::time::Timestamp;

/// The body that section 1 of the contract promises to accept, to the letter.
const CONTRACT: &str = r#"{"apps":{"1001":{"appId":1001,"appName":"Web Server","services":[
  {"serviceId":1,"serviceName":"nginx","imageName":"nginx:latest","config":{"ports":["80:80"]}}]}}}"#;

fn errors(json: &str) -> Vec<String> {
    match TargetInput::parse(json.as_bytes()) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

fn app(services: &str) -> String {
    format!(r#"{{"apps":{{"1":{{"appId":1,"appName":"a","services":[{services}]}}}}}}"#)
}

#[test]
fn accepts_the_body_of_the_contract() {
    let input = TargetInput::parse(CONTRACT.as_bytes()).unwrap();
    let (key, app) = input.apps.first_key_value().unwrap();
    assert_eq!(key.as_str(), "1001");
    assert_eq!(
        app.services[0].reference().unwrap().to_string(),
        "nginx:latest"
    );
}

#[test]
fn ids_may_be_text_and_the_image_may_stand_in_config() {
    let body = r#"{"apps":{"web":{"appId":"web","appName":"W","services":[
      {"serviceId":"one","serviceName":"a","config":{"image":"redis"}}]}}}"#;
    let input = TargetInput::parse(body.as_bytes()).unwrap();
    let service = &input.apps.values().next().unwrap().services[0];
    assert_eq!(
        service.reference().unwrap().repository().path(),
        "library/redis"
    );
}

#[test]
fn every_fault_names_its_path() {
    let service = r#"{"serviceId":1,"serviceName":"a","imageName":"x:1"}"#;
    for (json, expected) in [
        ("{".to_owned(), "/: "),
        (r#"{"apps":[]}"#.to_owned(), "/apps: "),
        (
            r#"{"apps":{},"version":1}"#.to_owned(),
            "/version: unknown field",
        ),
        (
            r#"{"apps":{"2":{"appId":1,"appName":"a","services":[]}}}"#.to_owned(),
            "/apps/2/appId: ",
        ),
        (
            app(r#"{"serviceId":1,"serviceName":"a","imageName":"Bad Name"}"#),
            "/apps/1/services/0/imageName: ",
        ),
        (
            app(r#"{"serviceId":1,"serviceName":"a","config":{"image":"Bad Name"}}"#),
            "/apps/1/services/0/config/image: ",
        ),
        (
            app(r#"{"serviceId":1,"serviceName":"a"}"#),
            "/apps/1/services/0/imageName: ",
        ),
        (
            app(r#"{"serviceId":1,"serviceName":"a","imageName":"x:1","config":{"image":"x:2"}}"#),
            "/apps/1/services/0/imageName: ",
        ),
        (
            app(r#"{"serviceId":1,"serviceName":"a","imageName":7}"#),
            "/apps/1/services/0/imageName: ",
        ),
        (
            app(r#"{"serviceId":1,"serviceName":"a/b","imageName":"x"}"#),
            "/apps/1/services/0/serviceName: ",
        ),
        (
            app(r#"{"serviceId":1,"serviceName":"a","imageName":"x","pin":{}}"#),
            "/apps/1/services/0/pin: unknown field",
        ),
        (
            app(r#"{"serviceId":1,"serviceName":"a","imageName":"x","config":{"prots":[]}}"#),
            "/apps/1/services/0/config/prots: unknown field",
        ),
        (
            app(r#"{"serviceId":1,"serviceName":"a","imageName":"x","config":{"ports":["x"]}}"#),
            "/apps/1/services/0/config/ports/0: ",
        ),
        (
            app(&format!("{service},{service}")),
            "/apps/1/services/1/serviceName: ",
        ),
        (
            app(
                r#"{"serviceId":1,"serviceName":"a","imageName":"x","config":{"depends_on":["b"]}}"#,
            ),
            "/apps/1/services/0/config/depends_on: ",
        ),
        (
            app(
                r#"{"serviceId":1,"serviceName":"a","imageName":"x","config":{"depends_on":{"b":{"restart":true}}}}"#,
            ),
            "/apps/1/services/0/config/depends_on/b/restart: not accepted",
        ),
    ] {
        let found = errors(&json);
        assert!(
            found.iter().any(|error| error.starts_with(expected)),
            "{json}: {found:?}"
        );
    }
}

#[test]
fn two_services_cannot_publish_one_port_even_in_two_apps() {
    let body = r#"{"apps":{
      "1":{"appId":1,"appName":"a","services":[{"serviceId":1,"serviceName":"a","imageName":"x","config":{"ports":["8080:80"]}}]},
      "2":{"appId":2,"appName":"b","services":[{"serviceId":1,"serviceName":"b","imageName":"x","config":{"ports":["127.0.0.1:8080:81"]}}]}}}"#;
    assert_eq!(
        errors(body),
        [
            "/apps/2/services/0/config/ports/0: 127.0.0.1:8080:81 conflicts with 8080:80 of service 1/a"
        ]
    );
}

#[test]
fn services_that_wait_for_each_other_are_refused() {
    let body = app(
        r#"{"serviceId":1,"serviceName":"a","imageName":"x","config":{"depends_on":["b"]}},
           {"serviceId":2,"serviceName":"b","imageName":"x","config":{"network_mode":"service:a"}},
           {"serviceId":3,"serviceName":"c","imageName":"x"}"#,
    );
    assert_eq!(
        errors(&body),
        ["/apps/1/services/0/config/depends_on: these services wait for each other: a, b"]
    );
}

#[test]
fn only_a_service_with_a_lasting_network_can_lend_it() {
    let of = |lender: &str, borrower: &str| {
        let body = app(&format!(
            r#"{{"serviceId":1,"serviceName":"a","imageName":"x","config":{{{lender}}}}},
               {{"serviceId":2,"serviceName":"b","imageName":"x",
                 "config":{{"network_mode":"service:a"{borrower}}}}}"#
        ));
        errors(&body)
    };
    let at = "/apps/1/services/1/config";
    assert_eq!(of("", ""), [] as [String; 0]);
    assert_eq!(
        of(r#""network_mode":"host""#, ""),
        [format!(
            "{at}/network_mode: `a` has no network of its own to lend"
        )]
    );
    assert_eq!(
        of(r#""x-holdfast":{"strategy":"hand-over"}"#, ""),
        [format!(
            "{at}/network_mode: `a` hands over from one container to another, each with its own network"
        )]
    );
    assert_eq!(
        of("", r#","hostname":"me""#),
        [format!(
            "{at}/hostname: belongs to the network, which is `a`'s: set it there"
        )]
    );
}

#[test]
fn what_cannot_be_done_to_a_service_is_refused_by_name() {
    let of = |config: &str| {
        errors(&app(&format!(
            r#"{{"serviceId":1,"serviceName":"a","imageName":"x","config":{{{config}}}}}"#
        )))
    };
    let at = "/apps/1/services/0/config/x-holdfast";
    let hand_over = r#""ports":["80:80"],"x-holdfast":{"strategy":"hand-over"}"#;
    assert!(of(hand_over)[0].starts_with(&format!("{at}/strategy: hand-over runs two")));
    assert_eq!(
        of(r#""x-holdfast":{"handover_timeout":"20s"}"#),
        [format!(
            "{at}/handover_timeout: only means something with strategy hand-over"
        )]
    );
    assert_eq!(
        of(r#""x-holdfast":{"priority":5000}"#),
        [format!("{at}/priority: write -1000 to 1000")]
    );
    assert!(of(r#""x-holdfast":{"strategi":"hand-over"}"#)[0].contains("strategi"));
}

#[test]
fn an_agents_release_has_an_image_and_nothing_else_and_there_is_one() {
    let agent = |name: &str, rest: &str| {
        format!(
            r#"{{"serviceId":"{name}","serviceName":"{name}","imageName":"agent:1","config":{{"x-holdfast":{{"agent":true{rest}}}}}}}"#
        )
    };
    let window = r#","windows":[{"days":["sat"],"start":"01:00","end":"03:00","timezone":"UTC"}],"priority":3"#;
    assert_eq!(errors(&app(&agent("agent", window))), [] as [&str; 0]);
    let with =
        |field: &str| agent("agent", "").replace("\"config\":{", &format!("\"config\":{{{field},"));
    for (field, name) in [
        (r#""ports":["80:80"]"#, "ports"),
        (r#""restart":"always""#, "restart"),
        (r#""privileged":true"#, "privileged"),
        (r#""command":"run""#, "command"),
        (r#""volumes":["data:/d"]"#, "volumes"),
    ] {
        let found = errors(&app(&with(field)));
        let at = format!("/apps/1/services/0/config/{name}: the agent's own release");
        assert!(
            found.iter().any(|error| error.starts_with(&at)),
            "{found:?}"
        );
    }
    let found = errors(&app(&agent("agent", r#","strategy":"hand-over""#)));
    let at = "/apps/1/services/0/config/x-holdfast/strategy: ";
    assert!(found.iter().any(|error| error.starts_with(at)), "{found:?}");
    let two = format!("{},{}", agent("agent", ""), agent("other", ""));
    let found = errors(&app(&two));
    assert_eq!(
        found,
        [
            "/apps/1/services/1/config/x-holdfast/agent: `1/agent` is this device's agent already: name one release"
        ]
    );
    let waits = r#"{"serviceId":"web","serviceName":"web","imageName":"web:1","config":{"depends_on":["agent"]}}"#;
    let found = errors(&app(&format!("{},{waits}", agent("agent", ""))));
    let at = "/apps/1/services/1/config/depends_on: `agent` is the agent's own release";
    assert!(found.iter().any(|error| error.starts_with(at)), "{found:?}");
}

#[test]
fn a_device_is_given_at_most_so_many_services() {
    let services: Vec<String> = (0..513)
        .map(|n| format!(r#"{{"serviceId":{n},"serviceName":"s{n}","imageName":"x"}}"#))
        .collect();
    assert!(errors(&app(&services.join(",")))[0].starts_with("/apps: 513 services"));
}

fn resolved() -> TargetState {
    let digest = Digest::of(b"manifest");
    let reference: Reference = "reg.local:5000/web:1".parse().unwrap();
    let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8".parse().unwrap();
    let service = ServiceTarget {
        service_id: "1".parse().unwrap(),
        service_name: "web".parse().unwrap(),
        image_name: reference.pinned(&digest),
        config: ServiceSpec {
            image: Some(reference.pinned(&digest)),
            ..ServiceSpec::default()
        },
        pin: Some(Pin {
            registry: reference.repository().registry().to_owned(),
            repository: reference.repository().path().to_owned(),
            reference,
            index_digest: None,
            expected: Some(Expected {
                manifest_digest: ManifestDigest(digest),
                config_digest: ConfigDigest(Digest::of(b"config")),
                size_bytes: 10,
            }),
            platform: Some("linux/amd64".parse().unwrap()),
            resolved_at: Some(Timestamp::from_millis(0)),
            resolution: Resolution {
                status: ResolutionStatus::Resolved,
                at: Timestamp::from_millis(0),
                error: None,
                stale_since: None,
            },
            pull_login: false,
        }),
    };
    let app_id: AppId = "1".parse().unwrap();
    let app = App {
        app_id: app_id.clone(),
        app_name: "a".into(),
        services: vec![service],
    };
    TargetState {
        uuid,
        generation: 1,
        apps: BTreeMap::from([(app_id, app)]),
    }
}

#[test]
fn a_device_reads_what_the_server_wrote_and_ignores_news_around_services() {
    let target = resolved();
    let mut json = serde_json::to_value(&target).unwrap();
    json["serverNews"] = true.into();
    json["apps"]["1"]["color"] = "blue".into();
    let read = TargetState::parse(json.to_string().as_bytes()).unwrap();
    assert_eq!(read, target);
    let (_, service) = read.services().next().unwrap();
    assert!(service.identity().unwrap().matches(service));
}

#[test]
fn a_device_refuses_what_it_would_have_to_drop() {
    let mut json = serde_json::to_value(resolved()).unwrap();
    json["apps"]["1"]["services"][0]["config"]["newField"] = 1.into();
    assert!(TargetState::parse(json.to_string().as_bytes()).is_err());
}

#[test]
fn a_device_refuses_an_image_that_its_pin_does_not_name() {
    let mut target = resolved();
    let other = Digest::of(b"other");
    target.apps.values_mut().next().unwrap().services[0].image_name =
        format!("reg.local:5000/web@{other}");
    let json = serde_json::to_vec(&target).unwrap();
    let errors = TargetState::parse(&json).unwrap_err();
    assert_eq!(errors[0].pointer, "/apps/1/services/0/imageName");
}
