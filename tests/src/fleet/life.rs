//! How a simulated device lives: it polls, does what is due, and reports, until it is switched off or disowned.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use holdfast_proto::current::CurrentState;
use reqwest::StatusCode;
use reqwest::header::{ETAG, IF_NONE_MATCH};
use tokio::time::{sleep, timeout};

use super::Pace;
use super::device::Device;

/// How devices reach the APIs.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) client: reqwest::Client,
    pub(super) apis: Vec<String>,
    pub(super) pace: Pace,
}

/// What became of a call.
enum Heard {
    /// It went well.
    Well,
    /// A target came that the device does not take.
    Refused,
    /// The API does not know the device.
    Disowned,
}

impl Net {
    /// Each device has an API of its own, and goes to the next one with each failure.
    fn url(&self, device: &Device, failures: usize, what: &str) -> String {
        let at = (device.number + failures) % self.apis.len().max(1);
        let api = self.apis.get(at).map_or("", String::as_str);
        format!("{api}/api/v1/devices/{}/{what}", device.uuid)
    }

    async fn poll(&self, device: &Device, failures: usize) -> anyhow::Result<Heard> {
        let url = self.url(device, failures, "state");
        let mut request = self.client.get(url).bearer_auth(device.token());
        if let Some(etag) = device.etag() {
            request = request.header(IF_NONE_MATCH, etag);
        }
        if self.pace.wait_s > 0 {
            request = request.header("prefer", format!("wait={}", self.pace.wait_s));
        }
        let limit = self.pace.patience + Duration::from_secs(self.pace.wait_s);
        let answer = timeout(limit, request.send()).await??;
        match answer.status() {
            StatusCode::NOT_MODIFIED => Ok(Heard::Well),
            StatusCode::UNAUTHORIZED => Ok(Heard::Disowned),
            StatusCode::OK => {
                let etag = answer.headers().get(ETAG).context("an ETag")?;
                let etag = etag.to_str()?.to_owned();
                let body = timeout(limit, answer.bytes()).await??;
                if device.hear(&etag, &body) {
                    Ok(Heard::Well)
                } else {
                    Ok(Heard::Refused)
                }
            }
            other => anyhow::bail!("a poll was answered {other}"),
        }
    }

    async fn report(
        &self,
        device: &Device,
        failures: usize,
        state: &CurrentState,
    ) -> anyhow::Result<Heard> {
        let url = self.url(device, failures, "current-state");
        let request = self.client.put(url).bearer_auth(device.token()).json(state);
        let answer = timeout(self.pace.patience, request.send()).await??;
        match answer.status() {
            StatusCode::UNAUTHORIZED => Ok(Heard::Disowned),
            status if status.is_success() => Ok(Heard::Well),
            other => anyhow::bail!("a report was answered {other}"),
        }
    }
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// One device's life.
pub(super) async fn live(device: Arc<Device>, net: Arc<Net>) {
    tokio::join!(polls(&device, &net), reports(&device, &net));
}

async fn polls(device: &Device, net: &Net) {
    let mut online = device.online();
    let mut failures = 0;
    while !device.is_disowned() && online.wait_for(|is_online| *is_online).await.is_ok() {
        let heard = tokio::select! {
            heard = net.poll(device, failures) => heard,
            _ = online.changed() => continue,
        };
        let is_held = net.pace.wait_s > 0;
        match heard {
            Ok(Heard::Well) if is_held => failures = 0,
            Ok(Heard::Well | Heard::Refused) => {
                failures = 0;
                sleep(Duration::from_millis(device.about_ms(ms(net.pace.pause)))).await;
            }
            Ok(Heard::Disowned) => {
                device.disown();
                device.tell.notify_one();
            }
            Err(_) => {
                failures += 1;
                sleep(Duration::from_millis(device.about_ms(ms(net.pace.pause)))).await;
            }
        }
    }
}

async fn reports(device: &Device, net: &Net) {
    let mut online = device.online();
    let mut failures = 0;
    loop {
        let heartbeat_ms = device.about_ms(ms(net.pace.heartbeat));
        // A little late rather than a little early: a step that is not due yet would be looked for again and again.
        let pause_ms = match device.due_in_ms() {
            Some(due_ms) if failures == 0 => heartbeat_ms.min(due_ms + 1),
            Some(_) | None if failures == 0 => heartbeat_ms,
            Some(_) | None => device.about_ms(ms(net.pace.pause)),
        };
        tokio::select! {
            () = device.tell.notified() => {}
            () = sleep(Duration::from_millis(pause_ms)) => {}
        }
        if device.is_disowned() {
            return;
        }
        device.step();
        if !*online.borrow_and_update() {
            continue;
        }
        for state in device.reports() {
            let heard = tokio::select! {
                heard = net.report(device, failures, &state) => heard,
                _ = online.changed() => break,
            };
            match heard {
                Ok(Heard::Well | Heard::Refused) => failures = 0,
                Ok(Heard::Disowned) => return device.disown(),
                Err(_) => {
                    failures += 1;
                    break;
                }
            }
        }
    }
}
