//! Compose files as a list of facts.

use super::yaml::MOST_BRACKETS;
use super::*;

/// A file with much of what people write.
const SHOP: &str = r#"
version: "3.8"
name: shop
x-common: &common
  restart: always
  logging: {driver: json-file, options: {max-size: 10m}}
  environment: {LEVEL: info}
services:
  web:
    <<: *common
    image: nginx:1.27
    ports: ["80:80", 8443]
    environment: {PRICE: "5$$", DEBUG: false, RATE: 0.5}
    networks: [front]
    volumes: ["data:/data:ro", /etc/app:/etc/app]
    depends_on: [db]
    secrets: [key]
    configs: [{source: app.conf, target: /etc/app.conf, uid: 1000, mode: 0440}]
  db:
    <<: [*common, {restart: "no", init: true}]
    image: postgres:17
    restart: unless-stopped
networks: {front: , back: {driver: bridge}}
volumes:
  data: {}
secrets: {key: {content: s3cret}}
configs: {app.conf: {content: "a=1"}}
"#;

fn target(text: &str) -> Value {
    match read(text.as_bytes()) {
        Ok(converted) => serde_json::from_str(&converted.text).unwrap(),
        Err(error) => panic!("{error:?}"),
    }
}

/// The places that are wrong.
fn faults(text: &str) -> Vec<String> {
    match read(text.as_bytes()) {
        Err(ComposeError::Invalid(errors)) => {
            errors.into_iter().map(|error| error.pointer).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn malformed(text: &str) -> String {
    match read(text.as_bytes()) {
        Err(ComposeError::Malformed(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// A file with one service that has this field.
fn with(field: &str) -> String {
    format!("services:\n  web:\n    image: nginx\n    {field}\n")
}

#[test]
fn a_file_becomes_the_target_that_people_would_send() {
    let target = target(SHOP);
    let app = &target["apps"]["shop"];
    assert_eq!(app["appId"], "shop");
    assert_eq!(app["appName"], "shop");
    let [db, web] = app["services"].as_array().unwrap().as_slice() else {
        panic!("two services expected");
    };
    assert_eq!(web["serviceName"], "web");
    assert_eq!(web["config"]["image"], "nginx:1.27");
    assert_eq!(web["config"]["restart"], "always");
    // What a service says itself stands in the place of what is merged, whole.
    assert_eq!(
        web["config"]["environment"],
        json!({ "PRICE": "5$", "DEBUG": false, "RATE": 0.5 })
    );
    assert_eq!(
        web["config"]["secrets"],
        json!([{ "source": "key", "content": "s3cret" }])
    );
    assert_eq!(
        web["config"]["configs"],
        json!([{ "source": "app.conf", "target": "/etc/app.conf", "uid": "1000", "mode": 0o440,
                 "content": "a=1" }])
    );
    // What is merged first counts before what is merged after it, and both after what is written.
    assert_eq!(db["config"]["restart"], "unless-stopped");
    assert_eq!(db["config"]["init"], true);
    assert_eq!(db["config"]["environment"]["LEVEL"], "info");
}

#[test]
fn the_order_of_the_file_is_no_difference() {
    let one = "services: {a: {image: x, init: true}, b: {image: y}}";
    let other = "services: {b: {image: y}, a: {init: true, image: x}}";
    let (one, other) = (
        read(one.as_bytes()).unwrap(),
        read(other.as_bytes()).unwrap(),
    );
    assert_eq!(one.input, other.input);
    let app = one.input.apps.values().next().unwrap();
    assert_eq!(app.app_name, DEFAULT_NAME);
}

#[test]
fn what_is_not_taken_is_refused_at_its_place() {
    for (text, pointer) in [
        (with("build: ."), "/services/web/build"),
        (with("profiles: [debug]"), "/services/web/profiles"),
        (with("extends: {service: base}"), "/services/web/extends"),
        (with("env_file: .env"), "/services/web/env_file"),
        (with("container_name: web"), "/services/web/container_name"),
        (
            with("deploy: {replicas: 2}"),
            "/services/web/deploy/replicas",
        ),
        (with("prots: [80]"), "/services/web/prots"),
        (
            with("ports: [\"80:80\", \"99999:1\"]"),
            "/services/web/ports/1",
        ),
        (with("volumes: [\"./x:/x\"]"), "/services/web/volumes/0"),
        (with("volumes: [\"data:/x\"]"), "/services/web/volumes/0"),
        (with("networks: [front]"), "/services/web/networks"),
        (with("depends_on: [db]"), "/services/web/depends_on"),
        (with("secrets: [key]"), "/services/web/secrets/0/source"),
        (with("secrets: key"), "/services/web/secrets"),
        (with("environment: {A: }"), "/services/web/environment"),
        (with("init: !reset null"), "/services/web/init"),
        (with("cpus: .inf"), "/services/web/cpus"),
        (with("labels: {1: x}"), "/services/web/labels"),
        (with("image: redis"), "/services/web/image"),
        (with("<<: text"), "/services/web/<<"),
        ("services: {web: {}}".to_owned(), "/services/web/image"),
        (
            "services: {web: {image: Not A Name}}".to_owned(),
            "/services/web/image",
        ),
        ("services: {web: nginx}".to_owned(), "/services/web"),
        (
            "services: {\"a b\": {image: x}}".to_owned(),
            "/services/a b",
        ),
        ("services: {a: {image: x}}\nname: a b".to_owned(), "/name"),
        ("services: {a: {image: x}}\nname: [a]".to_owned(), "/name"),
        (
            "services: {a: {image: x}}\ninclude: [b.yaml]".to_owned(),
            "/include",
        ),
        (
            "services: {a: {image: x}}\nnetworks: {n: {internal: true}}".to_owned(),
            "/networks/n/internal",
        ),
        (
            "services: {a: {image: x}}\nvolumes: {v: {external: true}}".to_owned(),
            "/volumes/v/external",
        ),
        (
            "services: {a: {image: x}}\nsecrets: {s: {file: ./s}}".to_owned(),
            "/secrets/s/file",
        ),
        (
            "services: {a: {image: x}}\nconfigs: {c: }".to_owned(),
            "/configs/c/content",
        ),
        ("services: {}".to_owned(), "/services"),
        ("services: [a]".to_owned(), "/services"),
        ("[]".to_owned(), ""),
        (String::new(), ""),
    ] {
        assert_eq!(faults(&text), [pointer], "{text}");
    }
    // Faults of several services are told at once.
    let two = "services:\n  a: {image: x, privileged: 1}\n  b: {image: x, build: .}";
    assert_eq!(faults(two), ["/services/a/privileged", "/services/b/build"]);
}

#[test]
fn services_that_do_not_fit_together_are_told_by_their_places() {
    let ports = "services: {a: {image: x, ports: [\"80:1\"]}, b: {image: x, ports: [\"80:2\"]}}";
    assert_eq!(faults(ports), ["/services/b/ports/0"]);
    let lender = "services: {a: {image: x, network_mode: \"service:b\", dns: 1.1.1.1},
                  b: {image: x, network_mode: host}}";
    assert_eq!(
        faults(lender),
        ["/services/a/network_mode", "/services/a/dns"]
    );
}

#[test]
fn variables_are_refused_and_their_names_are_not_repeated() {
    for value in ["${SECRET}", "$SECRET", "a$", "$$$"] {
        let text = with(&format!("environment: {{A: \"{value}\"}}"));
        let Err(ComposeError::Invalid(errors)) = read(text.as_bytes()) else {
            panic!("{value} was taken");
        };
        assert_eq!(errors[0].pointer, "/services/web/environment/A");
        assert!(!errors[0].detail.contains("SECRET"));
    }
    let target = target(&with("command: echo $$HOME $$$$"));
    let service = &target["apps"]["compose"]["services"][0];
    assert_eq!(service["config"]["command"], "echo $HOME $$");
}

#[test]
fn what_is_no_yaml_says_where() {
    let why = malformed("services:\n  web: [\n");
    assert!(why.contains("line 3"), "{why}");
    assert!(malformed("a: *b").contains("unknown anchor"));
    assert!(malformed("a: 1\n---\nb: 2").contains("more than one document"));
    assert!(matches!(read(b"a: \xff"), Err(ComposeError::Malformed(_))));
}

#[test]
fn aliases_that_multiply_end_at_the_bound() {
    let levels = (1..12).map(|level| {
        let ten = vec![format!("*a{}", level - 1); 10].join(", ");
        format!("a{level}: &a{level} [{ten}]\n")
    });
    let bomb = format!(
        "a0: &a0 [x, x, x, x, x, x, x, x]\n{}",
        levels.collect::<String>()
    );
    assert_eq!(faults(&bomb).len(), 1);
    // Few values, much text.
    let long = "x".repeat(100_000);
    let bomb = format!("a: &a {long}\nb: [{}]", vec!["*a"; 20_000].join(", "));
    assert_eq!(faults(&bomb), ["/b/9"]);
    // An alias for what it stands in.
    assert_eq!(faults("a: &a [*a]").len(), 1);
    let merged = "x-a: &a {k: 1}\nx-b: &b {<<: [*a, *a]}\nservices: {s: {<<: *b, image: x}}";
    assert_eq!(faults(merged), ["/services/s/k"]);
}

#[test]
fn deep_nesting_and_long_keys_are_errors_not_crashes() {
    for deep in ["[".repeat(200_000), "{a: ".repeat(60_000)] {
        assert_eq!(faults(&deep), [""]);
    }
    for deep in ["- ".repeat(100_000), "{a: ".repeat(MOST_BRACKETS / 8)] {
        assert_eq!(faults(&deep).len(), 1);
    }
    assert_eq!(
        faults(&format!("{}1{}", "[".repeat(33), "]".repeat(33))).len(),
        1
    );
    assert_eq!(faults(&format!("{}: 1", "k".repeat(257))), [""]);
    assert_eq!(faults("a: 1\na: 2"), ["/a"]);
}
