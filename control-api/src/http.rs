//! Owns the HTTP surface: every route in one list, each with its permission beside it.
//!
//! A route cannot be added without a permission: `Routes` has no other way in. Handlers are small and live
//! in `device` and `operator`; refusals are written by `finish`.

pub mod auth;
pub mod device;
pub mod extract;
pub mod finish;
pub mod install;
pub mod operator;
pub mod problem;
pub mod system;
pub mod webhooks;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use bytes::Bytes;
use holdfast_domain::principal::Permission;
use http::{Method, StatusCode};
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, Info, License, OpenApi, OpenApiBuilder, Ref, ResponseBuilder,
};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

use crate::app::{App, Shared};
use problem::Refusal;

/// The route that devices poll; counted apart from the others.
pub const POLL_ROUTE: &str = "/api/v1/devices/{uuid}/state";

/// One entry of the list, for the test that tries every route with every principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The method.
    pub method: Method,
    /// The path's pattern.
    pub path: String,
    /// What it asks of its caller.
    pub permission: Permission,
}

/// The list of routes while it is written.
#[derive(Default)]
struct Routes {
    router: OpenApiRouter<Shared>,
    entries: Vec<Entry>,
}

/// The whole surface.
fn all() -> Routes {
    use Permission::{Administer, Operate, OwnCredential, OwnDevice, Public, Read};
    Routes::default()
        // Devices
        .add(OwnCredential, routes!(device::enrol::enrol))
        .add(OwnDevice, routes!(device::poll::poll))
        .add(OwnDevice, routes!(device::report::report))
        .add(OwnDevice, routes!(device::pull_login::issue))
        // Operators: devices and their targets
        .add(Read, routes!(operator::devices::list))
        .add(Read, routes!(operator::devices::show))
        .add(Operate, routes!(operator::devices::change))
        .add(Operate, routes!(operator::devices::remove))
        .add(Read, routes!(operator::devices::current_state))
        .add(Read, routes!(operator::targets::show))
        .add(Operate, routes!(operator::targets::set))
        .add(Operate, routes!(operator::targets::compose))
        .add(Operate, routes!(operator::following::clear))
        .add(Read, routes!(operator::following::show))
        .add(Operate, routes!(operator::following::pin))
        .add(Operate, routes!(operator::following::unpin))
        .add(Read, routes!(operator::generations::list))
        .add(Read, routes!(operator::generations::compare))
        .add(Operate, routes!(operator::generations::back))
        // Operators: fleets and their releases
        .add(Read, routes!(operator::fleets::list))
        .add(Operate, routes!(operator::fleets::create))
        .add(Read, routes!(operator::fleets::show))
        .add(Operate, routes!(operator::fleets::change))
        .add(Operate, routes!(operator::fleets::remove))
        .add(Operate, routes!(operator::releases::set))
        .add(Operate, routes!(operator::releases::compose))
        .add(Read, routes!(operator::releases::list))
        .add(Read, routes!(operator::releases::compare))
        .add(Read, routes!(operator::releases::show))
        .add(Operate, routes!(operator::releases::roll_out))
        // Operators: access
        .add(Administer, routes!(operator::enrolment_keys::create))
        .add(Administer, routes!(operator::enrolment_keys::list))
        .add(Administer, routes!(operator::enrolment_keys::revoke))
        .add(Administer, routes!(operator::tokens::create))
        .add(Administer, routes!(operator::tokens::list))
        .add(Administer, routes!(operator::tokens::revoke))
        // Operators: what happened
        .add(Read, routes!(operator::history::events))
        .add(Read, routes!(operator::stream::follow))
        .add(Read, routes!(operator::history::audit))
        .add(Administer, routes!(operator::history::verify))
        // Operators: images that may run
        .add(Read, routes!(operator::catalog::list))
        .add(Administer, routes!(operator::catalog::add))
        .add(Read, routes!(operator::catalog::categories))
        .add(Read, routes!(operator::catalog::show))
        .add(Administer, routes!(operator::catalog::change))
        .add(Administer, routes!(operator::catalog::remove))
        .add(Read, routes!(operator::tags::list))
        .add(Administer, routes!(operator::tags::add))
        .add(Administer, routes!(operator::tags::change))
        .add(Administer, routes!(operator::tags::remove))
        // Operators: questions whether images may run
        .add(Read, routes!(operator::approvals::list))
        .add(Operate, routes!(operator::approvals::ask))
        .add(Administer, routes!(operator::approvals::bulk))
        .add(Read, routes!(operator::approvals::show))
        .add(Administer, routes!(operator::approvals::approve))
        .add(Administer, routes!(operator::approvals::reject))
        // Operators: how versions travel
        .add(Read, routes!(operator::policies::list))
        .add(Administer, routes!(operator::policies::create))
        .add(Read, routes!(operator::previews::preview))
        .add(Read, routes!(operator::policies::show))
        .add(Administer, routes!(operator::policies::replace))
        .add(Administer, routes!(operator::policies::remove))
        .add(Read, routes!(operator::rollouts::list))
        .add(Operate, routes!(operator::rollouts::create))
        .add(Read, routes!(operator::rollouts::show))
        .add(Read, routes!(operator::rollouts::devices_of))
        .add(Read, routes!(operator::rollouts::timeline))
        .add(Operate, routes!(operator::rollouts::order))
        // Operators: images and what their tags mean
        .add(Operate, routes!(operator::images::refresh))
        .add(Read, routes!(operator::images::history))
        .add(Read, routes!(operator::updates::candidates))
        .add(Read, routes!(operator::updates::of_one))
        .add(Read, routes!(operator::updates::of_fleet))
        // Operators: access to registries
        .add(Administer, routes!(operator::credentials::put))
        .add(Administer, routes!(operator::credentials::list))
        .add(Administer, routes!(operator::credentials::list_all))
        .add(Administer, routes!(operator::credentials::remove))
        // Operators: what registries told
        .add(Read, routes!(operator::deliveries::list))
        .add(Operate, routes!(operator::deliveries::test))
        .add(Read, routes!(operator::deliveries::show))
        .add(Operate, routes!(operator::deliveries::redeliver))
        // Operators: who is told
        .add(Administer, routes!(operator::notifications::list))
        .add(Administer, routes!(operator::notifications::create))
        .add(Administer, routes!(operator::notifications::show))
        .add(Administer, routes!(operator::notifications::replace))
        .add(Administer, routes!(operator::notifications::remove))
        .add(Administer, routes!(operator::notifications::test))
        .add(Administer, routes!(operator::notifications::deliveries))
        // Registries
        .add(OwnCredential, routes!(webhooks::detected))
        .add(OwnCredential, routes!(webhooks::named))
        .add(OwnCredential, routes!(webhooks::by_path))
        // Everybody
        .add(Public, routes!(system::openapi))
        .add(Public, routes!(system::livez))
        .add(Public, routes!(system::readyz))
        .add(Public, routes!(system::metrics))
        .add(Public, routes!(install::script))
        .add(Public, routes!(install::release))
}

impl Routes {
    /// Adds handlers that share a path, behind the guard for `permission`.
    fn add(
        mut self,
        permission: Permission,
        (schemas, mut paths, methods): UtoipaMethodRouter<Shared>,
    ) -> Self {
        for (path, item) in &mut paths.paths {
            for (method, operation) in operations(item) {
                describe(operation, permission);
                self.entries.push(Entry {
                    method,
                    path: path.clone(),
                    permission,
                });
            }
        }
        let guarded = methods
            .route_layer(middleware::from_fn(move |request: Request, next: Next| {
                auth::guard(permission, request, next)
            }))
            .route_layer(middleware::from_fn(finish::note_route));
        self.router = self.router.routes((schemas, paths, guarded));
        self
    }
}

fn operations(item: &mut PathItem) -> Vec<(Method, &mut Operation)> {
    [
        (Method::GET, item.get.as_mut()),
        (Method::PUT, item.put.as_mut()),
        (Method::POST, item.post.as_mut()),
        (Method::PATCH, item.patch.as_mut()),
        (Method::DELETE, item.delete.as_mut()),
    ]
    .into_iter()
    .filter_map(|(method, operation)| operation.map(|operation| (method, operation)))
    .collect()
}

/// Writes into the document what every route has in common: its credential and its errors.
fn describe(operation: &mut Operation, permission: Permission) {
    let credential = match permission {
        Permission::Public => None,
        Permission::OwnCredential
        | Permission::OwnDevice
        | Permission::Read
        | Permission::Operate
        | Permission::Administer => Some("bearer"),
    };
    operation.security = Some(
        credential
            .map(|scheme| SecurityRequirement::new(scheme, Vec::<String>::new()))
            .into_iter()
            .collect(),
    );
    let problem = ResponseBuilder::new()
        .description("A problem, said in the form of RFC 9457")
        .content(
            holdfast_proto::problem::PROBLEM_MEDIA_TYPE,
            ContentBuilder::new()
                .schema(Some(Ref::from_schema_name("Problem")))
                .build(),
        )
        .build();
    operation
        .responses
        .responses
        .insert("default".to_owned(), problem.into());
}

/// Every route with its permission.
pub fn entries() -> Vec<Entry> {
    all().entries
}

/// The OpenAPI document of the surface.
pub fn document() -> OpenApi {
    finish_document(all().router.into_openapi())
}

fn finish_document(generated: OpenApi) -> OpenApi {
    use utoipa::ToSchema as _;
    let mut info = Info::new("Holdfast control API", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "Keeps fleets of small Linux machines on exactly the container images their operators chose."
            .to_owned(),
    );
    info.license = Some(License::new("MIT OR Apache-2.0"));
    let mut components = generated.components.unwrap_or_default();
    let mut schemas = vec![(
        "Problem".to_owned(),
        <holdfast_proto::problem::Problem as utoipa::PartialSchema>::schema(),
    )];
    holdfast_proto::problem::Problem::schemas(&mut schemas);
    components.schemas.extend(schemas);
    components.add_security_scheme(
        "bearer",
        SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)),
    );
    OpenApiBuilder::new()
        .info(info)
        .paths(generated.paths)
        .components(Some(components))
        .build()
}

/// The OpenAPI document as it is served and checked in.
///
/// # Panics
/// Never: the document is plain data with text keys.
pub fn document_text() -> String {
    let mut text = serde_json::to_string_pretty(&document())
        .expect("an OpenAPI document is plain data with text keys");
    text.push('\n');
    text
}

/// The OpenAPI document as bytes, for [`App::openapi`].
pub fn document_bytes() -> Bytes {
    document_text().into()
}

/// The whole service.
pub fn router(app: Arc<App>) -> Router {
    let (router, _) = all().router.split_for_parts();
    let finish = Arc::clone(&app);
    router
        .fallback(|| async { Refusal::from_status(StatusCode::NOT_FOUND) })
        .method_not_allowed_fallback(|| async {
            Refusal::from_status(StatusCode::METHOD_NOT_ALLOWED)
        })
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            finish::finish(Arc::clone(&finish), request, next)
        }))
        .with_state(app)
}
