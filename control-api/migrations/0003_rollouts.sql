-- What was last told of a device's presence, so that each change is told once.
alter table devices add column is_online bigint not null default 0;

-- What may run: images by their one canonical name, and what people decided about them.
create table images (
    id IDENTITY_KEY,
    registry text not null,
    repository text not null,
    category text not null,
    description text not null,
    is_official bigint not null,
    approval text not null,
    decided_by text,
    decided_at bigint,
    created_at bigint not null,
    updated_at bigint not null,
    unique (registry, repository)
);
create index images_by_category on images (category, id);

create table image_tags (
    id IDENTITY_KEY,
    image_id bigint not null references images (id) on delete cascade,
    tag text not null,
    is_recommended bigint not null,
    is_deprecated bigint not null,
    architecture text,
    digest text,
    created_at bigint not null,
    updated_at bigint not null,
    unique (image_id, tag)
);

-- Content that may run: what a tag meant when it was approved, whatever it means by now.
create table approved_digests (
    image_id bigint not null references images (id) on delete cascade,
    digest text not null,
    tag text,
    approved_by text not null,
    approved_at bigint not null,
    primary key (image_id, digest)
);

-- Somebody wants an image that nobody decided about; one question for an image at a time. `push` is what waits.
create table approval_requests (
    id IDENTITY_KEY,
    registry text not null,
    repository text not null,
    tag text not null,
    digest text,
    source text not null,
    push text not null,
    state text not null,
    times bigint not null,
    approvals text not null,
    note text,
    decided_by text,
    decided_at bigint,
    created_at bigint not null,
    last_at bigint not null
);
create unique index approval_requests_open on approval_requests (registry, repository)
    where state = 'open';

create table policies (
    id IDENTITY_KEY,
    name text not null unique,
    body text not null,
    created_at bigint not null,
    updated_at bigint not null
);

create table fleets (
    id IDENTITY_KEY,
    name text not null unique,
    description text not null,
    release bigint,
    created_at bigint not null,
    updated_at bigint not null
);

-- What a fleet is to run; never changed. `pins` are the digests that its references meant when it was made.
create table releases (
    id IDENTITY_KEY,
    fleet_id bigint not null references fleets (id) on delete cascade,
    number bigint not null,
    input text not null,
    pins text not null,
    created_by text not null,
    created_at bigint not null,
    unique (fleet_id, number)
);

-- What a device was told before, the way back of an operator; bounded, but what was verified last stays.
create table generations (
    device_id bigint not null references devices (id) on delete cascade,
    generation bigint not null,
    input text not null,
    body text not null,
    cause text not null,
    actor text not null,
    at bigint not null,
    verified_at bigint,
    primary key (device_id, generation)
);

-- A version on its way over a fleet: of an image, or a release. At most one active rollout is about a tag in a scope.
create table rollouts (
    id IDENTITY_KEY,
    scope text not null,
    registry text not null,
    repository text not null,
    tag text not null,
    image text,
    previous_digest text,
    release_id bigint,
    policy_id bigint,
    rules text not null,
    windows text not null,
    state text not null,
    reason text not null,
    opened bigint not null,
    approved bigint not null,
    created_by text not null,
    created_at bigint not null,
    since bigint not null,
    progressed_at bigint not null,
    ended_at bigint
);
create unique index rollouts_active on rollouts
    (scope, registry, repository, (case when image is null then '' else tag end))
    where state in ('pending', 'running', 'paused', 'rolling_back');
create index rollouts_by_state on rollouts (state, id);

-- Membership is frozen when the rollout is made; a device that is gone keeps its row.
create table rollout_devices (
    rollout_id bigint not null references rollouts (id) on delete cascade,
    device text not null,
    batch bigint not null,
    standing text not null,
    since bigint,
    healthy_since bigint,
    budget_group text,
    generation bigint,
    back_to bigint,
    detail text not null,
    changed_at bigint not null,
    primary key (rollout_id, device)
);
create index rollout_devices_by_device on rollout_devices (device, rollout_id);

create table rollout_log (
    id IDENTITY_KEY,
    rollout_id bigint not null references rollouts (id) on delete cascade,
    device text,
    what text not null,
    detail text not null,
    at bigint not null
);
create index rollout_log_by_rollout on rollout_log (rollout_id, id);

-- One of several programs does what must be done once. Whoever takes a lease over raises its epoch, and what the
-- one before it writes afterwards changes nothing.
create table leases (
    name text primary key,
    holder text not null,
    epoch bigint not null,
    until bigint not null
);

create table webhook_deliveries (
    id IDENTITY_KEY,
    vendor text not null,
    delivery text not null unique,
    body text not null,
    state text not null,
    outcome text,
    attempts bigint not null,
    received_at bigint not null,
    done_at bigint
);
create index webhook_deliveries_by_state on webhook_deliveries (state, id);
