//! Each check fails on what it is for, and is silent on what is right.

use http::Method;

use super::*;

const OLD: &str = "sha256:old";
const NEW: &str = "sha256:new";

fn container(image: &str, state: &str, restart: &str) -> Container {
    Container {
        id: format!("{image}-{state}"),
        service: "web".to_owned(),
        role: String::new(),
        image: image.to_owned(),
        state: state.to_owned(),
        restart: restart.to_owned(),
        generation: 2,
        attached: String::new(),
        name: "/web".to_owned(),
    }
}

fn device(containers: &[Container]) -> Snapshot {
    let images = [OLD, NEW].map(|image| (image.to_owned(), Vec::new()));
    Snapshot {
        containers: containers.to_vec(),
        networks: Vec::new(),
        images: images.to_vec(),
    }
}

fn swap() -> Bounds {
    Bounds {
        generation: 2,
        target: Some(NEW.to_owned()),
        last_good: Some(OLD.to_owned()),
        replaces: true,
        allowed: [OLD, NEW].map(str::to_owned).into(),
        fails: Some(NEW.to_owned()),
        ..Bounds::default()
    }
}

fn rules(found: &[Violation]) -> Vec<&str> {
    found
        .iter()
        .map(|violation| violation.rule.as_str())
        .collect()
}

fn of(containers: &[Container]) -> Vec<String> {
    let found = always(&device(containers), &swap());
    rules(&found).into_iter().map(str::to_owned).collect()
}

#[test]
fn every_moment_of_a_right_swap_passes() {
    let moments: [&[Container]; 5] = [
        &[container(OLD, "running", "always")],
        &[
            container(OLD, "running", "always"),
            container(NEW, "created", "no"),
        ],
        &[
            container(OLD, "exited", "no"),
            container(NEW, "created", "no"),
        ],
        &[
            container(OLD, "exited", "no"),
            container(NEW, "running", "no"),
        ],
        &[container(NEW, "running", "always")],
    ];
    for moment in moments {
        assert_eq!(of(moment), Vec::<String>::new(), "{moment:?}");
    }
}

#[test]
fn two_that_run_or_come_back_are_found() {
    let both = [
        container(OLD, "running", "no"),
        container(NEW, "running", "no"),
    ];
    assert_eq!(of(&both), ["I1"]);
    let both = [
        container(OLD, "exited", "always"),
        container(NEW, "running", "always"),
    ];
    assert_eq!(of(&both), ["I2"]);
    let allowed = Bounds {
        both_may_run: true,
        ..swap()
    };
    let both = [
        container(OLD, "running", "no"),
        container(NEW, "running", "no"),
    ];
    assert_eq!(always(&device(&both), &allowed), []);
}

#[test]
fn a_container_that_is_down_before_its_successor_is_made_is_found() {
    assert_eq!(of(&[container(OLD, "exited", "no")]), ["I3"]);
    let restarted = Bounds {
        engine_restarted: true,
        ..swap()
    };
    let left = device(&[container(OLD, "exited", "always")]);
    assert_eq!(rules(&always(&left, &swap())), ["I3"]);
    assert_eq!(always(&left, &restarted), [], "the engine left it down");
    let mut half = device(&[
        container(OLD, "exited", "no"),
        container(NEW, "created", "no"),
    ]);
    half.images.pop();
    assert_eq!(
        rules(&always(&half, &swap())),
        ["I3"],
        "its image is not complete"
    );
}

#[test]
fn a_last_good_that_is_gone_is_found() {
    let mut gone = device(&[container(NEW, "running", "no")]);
    gone.images.remove(0);
    assert_eq!(rules(&always(&gone, &swap())), ["I4"]);
}

#[test]
fn strangers_images_and_generations_are_found() {
    let strange = container("sha256:strange", "exited", "no");
    let good = container(OLD, "running", "always");
    assert_eq!(of(&[good, strange]), ["I5"]);
    let mut ahead = container(OLD, "running", "always");
    ahead.generation = 3;
    assert_eq!(of(&[ahead]), ["I6"]);
}

#[test]
fn events_tell_of_doubles_and_of_too_many_attempts() {
    let mut seen = Seen::default();
    seen.started("web", "a");
    seen.ended("web", "a");
    seen.started("web", "b");
    seen.starts.insert(NEW.to_owned(), MAX_ATTEMPTS);
    assert_eq!(between(&seen, &swap()), []);
    seen.started("web", "a");
    seen.starts.insert(NEW.to_owned(), MAX_ATTEMPTS + 1);
    assert_eq!(rules(&between(&seen, &swap())), ["I1", "I13"]);
}

#[test]
fn another_end_and_open_intents_are_found() {
    let lines = |text: &str| vec![text.to_owned()];
    assert_eq!(same_end(&lines("a"), &lines("a"), 0), []);
    let found = same_end(&lines("a"), &lines("b"), 1);
    assert_eq!(rules(&found), ["I7", "I7"]);
    assert!(found[0].evidence.ends_with("- a + b"), "{found:?}");
}

#[test]
fn calls_without_need_or_intent_are_found() {
    let call = Call {
        method: Method::POST,
        path: "/containers/a/start".to_owned(),
        query: String::new(),
        status: None,
        registry_auth: None,
    };
    assert_eq!(quiet(&[]), []);
    assert_eq!(rules(&quiet(&[call])), ["I8"]);
    assert_eq!(intent_first(1, "start"), []);
    assert_eq!(rules(&intent_first(0, "start")), ["I11"]);
}

#[test]
fn a_change_of_anything_foreign_is_found_with_its_place() {
    let before = json!({ "image": { "Id": "a", "Tags": [1] }, "file": "x" });
    assert_eq!(untouched("I9", &before, &before), []);
    let found = untouched(
        "I9",
        &before,
        &json!({ "image": { "Id": "a" }, "file": null }),
    );
    assert_eq!(rules(&found), ["I9", "I9"]);
    assert_eq!(found[1].evidence, "/image/Tags: [1] → null");
}
