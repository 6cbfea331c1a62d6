//! Facts about reading what an engine answers.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use bollard::models::{CreateImageInfo, ProgressDetail};
use holdfast_plan::Published;
use holdfast_proto::spec::Protocol;

use super::image::progressed;
use super::read::{container, restart_from};
use super::*;

fn refused(operation: Operation, status: u16) -> EngineError {
    let error = DockerError::DockerResponseServerError {
        status_code: status,
        message: "no\nreally".to_owned(),
    };
    fault(operation, error)
}

#[test]
fn refusals_are_told_from_an_engine_that_is_away() {
    assert!(refused(Operation::List, 503).is_engine_away());
    assert!(!refused(Operation::Start, 500).is_engine_away());
    assert!(fault(Operation::List, DockerError::RequestTimeoutError).is_engine_away());
    let socket = DockerError::SocketNotFoundError("/x".to_owned());
    assert!(fault(Operation::List, socket).is_engine_away());
}

#[test]
fn a_container_that_goes_while_podman_looks_at_it_is_gone() {
    let said = |status_code: u16, message: &str| {
        let message = message.to_owned();
        let error = DockerError::DockerResponseServerError {
            status_code,
            message,
        };
        absent_is_none::<()>(Err(fault(Operation::Inspect, error)))
    };
    let gone = said(
        500,
        "container 1f does not exist in database: no such container",
    );
    assert_eq!(gone.unwrap(), None);
    assert!(said(500, "database is locked").is_err());
}

#[test]
fn an_engine_of_another_version_is_away_until_a_version_is_agreed_on_again() {
    for words in [
        "client version 1.50 is too new. Maximum supported API version is 1.41",
        "client version 1.41 is too old. Minimum supported API version is 1.44",
    ] {
        let error = DockerError::DockerResponseServerError {
            status_code: 400,
            message: words.to_owned(),
        };
        let error = fault(Operation::Create, error);
        assert!(error.is_engine_away() && !error.is_final(), "{error}");
        assert!(crate::fault::chain(&error).contains(words));
    }
}

#[test]
fn events_of_other_devices_containers_do_not_count() {
    let device = DeviceId::from_random([1; 16]);
    let event = |json: String| serde_json::from_str::<EventMessage>(&json).unwrap();
    let of = |device: &str| {
        event(format!(
            r#"{{"Type":"container","Action":"die","Actor":{{"Attributes":{{"io.holdfast.device":"{device}"}}}}}}"#
        ))
    };
    assert!(may_concern(&device, &of(&device.to_string())));
    assert!(!may_concern(&device, &of("another")));
    assert!(may_concern(
        &device,
        &event(r#"{"Type":"network","Action":"disconnect"}"#.to_owned())
    ));
}

#[test]
fn podman_is_told_by_its_component_and_described_as_the_agent_acts() {
    let version = |name: &str| {
        let text = format!(r#"{{"Components":[{{"Name":"{name}","Version":"4.3.1"}}]}}"#);
        dialect(&serde_json::from_str(&text).unwrap())
    };
    assert_eq!(version("Podman Engine"), Dialect::Podman);
    assert_eq!(version("Engine"), Dialect::Docker);
    let found = |state: &str, more: &str| {
        let json = format!(
            r#"{{"Id":"c1","State":{{"Status":"{state}"}},"HostConfig":{{"RestartPolicy":{{"Name":"no"}},
                "NetworkMode":"container:c0"}},"NetworkSettings":{{"Networks":{{"n":{{"NetworkID":"n"}}}}}},
                "Config":{{"Labels":{{"io.holdfast.app":"1","io.holdfast.service":"web",
                "io.holdfast.restart":"unless-stopped"{more}}}}}}}"#
        );
        container(serde_json::from_str(&json).unwrap(), Dialect::Podman).unwrap()
    };
    let running = found("running", "");
    assert_eq!(running.restart, RestartPolicy::UnlessStopped);
    assert_eq!(running.networks.len(), 0, "they are the other container's");
    assert_eq!(found("exited", "").restart, RestartPolicy::No);
    let sandbox = found("running", r#","io.holdfast.role":"sandbox""#);
    assert_eq!(sandbox.restart, RestartPolicy::Always);
}

#[test]
fn only_an_impossible_create_is_final() {
    assert!(refused(Operation::Create, 400).is_final());
    for (operation, status) in [
        (Operation::Create, 404),
        (Operation::Create, 409),
        (Operation::Create, 500),
        (Operation::Start, 400),
    ] {
        assert!(!refused(operation, status).is_final());
    }
}

#[test]
fn a_missing_thing_is_none_and_other_refusals_stay() {
    assert!(matches!(
        absent_is_none::<()>(Err(refused(Operation::Inspect, 404))),
        Ok(None)
    ));
    assert!(absent_is_none::<()>(Err(refused(Operation::Inspect, 500))).is_err());
}

#[test]
fn the_engines_words_are_one_line() {
    let text = refused(Operation::Start, 400).to_string();
    assert_eq!(
        text,
        "the engine refused to start a container (400): no really"
    );
}

#[test]
fn a_pull_that_repeats_itself_makes_no_progress() {
    let message = |id: &str, status: &str, current| CreateImageInfo {
        id: Some(id.to_owned()),
        status: Some(status.to_owned()),
        progress_detail: Some(ProgressDetail {
            current: Some(current),
            total: None,
        }),
        ..CreateImageInfo::default()
    };
    let mut layers = HashMap::new();
    let mut moved = |id, status, current| progressed(&mut layers, message(id, status, current));
    assert!(moved("a", "Downloading", 1));
    assert!(!moved("a", "Downloading", 1));
    assert!(moved("a", "Downloading", 2));
    assert!(moved("b", "Downloading", 2));
    assert!(!moved("a", "Retrying in 5 seconds", 0));
    assert!(!moved("a", "Retrying in 4 seconds", 0));
    assert!(moved("a", "Extracting", 2));
}

#[test]
fn containers_are_described_in_our_words() {
    let found: answers::Container = serde_json::from_str(
        r#"{"Id":"c1","Name":"/web","RestartCount":2,
            "State":{"Status":"exited","ExitCode":137,"OOMKilled":true,"StartedAt":"t","Error":"e"},
            "HostConfig":{"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":3}},
            "Config":{"Labels":{"a":"b"}}}"#,
    )
    .unwrap();
    let found = container(found, Dialect::Docker).unwrap();
    assert_eq!(found.name, "web");
    assert_eq!(found.state, ContainerState::Exited { code: 137 });
    assert_eq!(found.restart, RestartPolicy::OnFailure(Some(3)));
    assert_eq!(found.restart_count, 2);
    assert!(found.oom_killed);
    assert_eq!(found.labels["a"], "b");
    assert!(container(answers::Container::default(), Dialect::Docker).is_err());
}

#[test]
fn the_restart_policy_survives_the_journey_to_the_engine_and_back() {
    for policy in [
        RestartPolicy::No,
        RestartPolicy::Always,
        RestartPolicy::UnlessStopped,
        RestartPolicy::OnFailure(None),
        RestartPolicy::OnFailure(Some(4)),
    ] {
        let sent = serde_json::to_value(convert::restart(policy)).unwrap();
        let read = serde_json::from_value(sent).unwrap();
        assert_eq!(restart_from(Some(&read)), policy);
    }
    assert_eq!(restart_from(None), RestartPolicy::No);
}

fn inspected(json: &str) -> EngineContainer {
    container(serde_json::from_str(json).unwrap(), Dialect::Docker).unwrap()
}

#[test]
fn a_container_is_reached_at_its_own_addresses_or_at_the_devices() {
    let found = inspected(
        r#"{"Id":"c1","HostConfig":{"NetworkMode":"bridge"},"NetworkSettings":{"Networks":{
            "b":{"IPAddress":"172.18.0.2","GlobalIPv6Address":"fd00::2"},
            "a":{"IPAddress":"172.17.0.2","GlobalIPv6Address":""}}}}"#,
    );
    let written: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(written, ["172.17.0.2", "172.18.0.2", "fd00::2"]);
    let found = inspected(r#"{"Id":"c1","HostConfig":{"NetworkMode":"host"}}"#);
    assert_eq!(found.addresses, [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    let found = inspected(r#"{"Id":"c1","HostConfig":{"NetworkMode":"none"}}"#);
    assert_eq!(found.addresses, [] as [IpAddr; 0]);
}

#[test]
fn a_health_check_that_cannot_run_is_told_from_one_that_says_no() {
    let fault = |exit_code: i64, output: &str| {
        let log = serde_json::json!([
            { "ExitCode": 0, "Output": "" }, { "ExitCode": exit_code, "Output": output },
        ]);
        let state = serde_json::json!({ "Health": { "Status": "unhealthy", "Log": log } });
        inspected(&serde_json::json!({ "Id": "c1", "State": state }).to_string()).probe_error
    };
    let missing = "OCI runtime exec failed: exec failed: unable to start container process: \
        exec: \"/bin/sh\": stat /bin/sh: no such file or directory: unknown";
    assert_eq!(fault(-1, missing), Some(missing.to_owned()));
    assert!(fault(127, "sh: curl: not found").is_some());
    let this_time = "OCI runtime exec failed: exec failed: fork: resource temporarily unavailable";
    assert_eq!(fault(-1, this_time), None);
    assert_eq!(fault(-1, "Health check exceeded timeout (1s)"), None);
    assert_eq!(fault(1, "no such file or directory"), None);
    assert_eq!(fault(0, ""), None);
    assert_eq!(inspected(r#"{"Id":"c1"}"#).probe_error, None);
}

#[test]
fn what_an_engine_writes_for_none_is_none() {
    for json in [
        r#"{"Id":"c1","HostConfig":{"Memory":0,"MemoryReservation":-1,"NanoCpus":0,"PidsLimit":null}}"#,
        r#"{"Id":"c1","HostConfig":{"Memory":4611686018427387904,"NanoCpus":3999999999,"PidsLimit":-1}}"#,
        r#"{"Id":"c1"}"#,
    ] {
        assert_eq!(inspected(json).amounts, Amounts::default(), "{json}");
    }
    let found = inspected(
        r#"{"Id":"c1","HostConfig":{"Memory":64,"MemoryReservation":32,"NanoCpus":5,"PidsLimit":7}}"#,
    );
    let expected = Amounts {
        memory: 64,
        memory_reservation: 32,
        nano_cpus: 5,
        pids: 7,
    };
    assert_eq!(found.amounts, expected);
}

#[test]
fn ports_are_published_where_the_device_forwards_them() {
    let found = inspected(
        r#"{"Id":"c1","NetworkSettings":{"Ports":{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"},
            {"HostIp":"::","HostPort":"8080"}],"53/udp":[{"HostPort":"53"}],"90/tcp":null}}}"#,
    );
    let published = |target, protocol, host| Published {
        target,
        protocol,
        host,
    };
    let expected = [
        published(53, Protocol::Udp, 53),
        published(80, Protocol::Tcp, 8080),
    ];
    assert_eq!(found.published, BTreeSet::from(expected));
}

#[test]
fn what_shares_a_network_has_no_connections_of_its_own() {
    let found = inspected(
        r#"{"Id":"c1","Image":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "HostConfig":{"NetworkMode":"container:c0ffee"},
            "NetworkSettings":{"Networks":{"m":{"NetworkID":"m1","Aliases":["web"],"IPAddress":"10.0.0.2"}}}}"#,
    );
    assert_eq!(found.shares.as_deref(), Some("c0ffee"));
    assert!(found.image_id.is_some());
    assert!(found.networks.is_empty());
}

#[test]
fn connections_are_told_with_their_names() {
    let found = inspected(
        r#"{"Id":"c1","NetworkSettings":{"Networks":{"n":{"NetworkID":"","Aliases":null,"IPAddress":""},
            "m":{"NetworkID":"m1","Aliases":["web"],"IPAddress":"10.0.0.2"}}}}"#,
    );
    assert_eq!(found.shares, None);
    assert_eq!(
        found.networks["n"],
        super::super::EngineAttachment::default()
    );
    let joined = &found.networks["m"];
    assert_eq!(joined.network_id, "m1");
    assert!(joined.aliases.contains("web"));
    assert_eq!(
        joined.address.map(|ip| ip.to_string()).as_deref(),
        Some("10.0.0.2")
    );
}

#[test]
fn a_program_that_did_not_start_this_time_is_told_from_one_that_never_will() {
    let of = |output: &str| exec::as_meant(126, output);
    let failed = "OCI runtime exec failed: exec failed: unable to start container process: ";
    let missing = "exec: \"x\": executable file not found in $PATH";
    assert_eq!(of(&format!("{failed}{missing}")), Executed::NOT_RUNNABLE);
    let this_time = format!("{failed}fork: resource temporarily unavailable");
    assert_eq!(of(&this_time), Executed::NOT_STARTED);
    assert_eq!(of("the program's own words"), 126);
}
