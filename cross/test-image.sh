#!/usr/bin/env bash
# Starts the control API's image with its Compose file, as an owner would: cross/test-image.sh
# On the engine of DOCKER_HOST. PostgreSQL's own image is on a registry that is not asked: a Debian root with Debian's
# PostgreSQL stands in, and reads the same settings.
set -euo pipefail
. "$(dirname "$0")/common.sh"

[ "$(id -u)" -eq 0 ] || die "needs root: a Debian root is made"
"$root/cross/setup.sh" test image
archive=$packages/holdfast-api.oci.tar
[ -f "$archive" ] || die "$archive is not there: run make image"

work=$(mktemp -d)
export COMPOSE_PROJECT_NAME=holdfast-image-$$ HOLDFAST_VERSION=test-$$ HOLDFAST_IMAGE=holdfast.local/api
# The engine chooses a port that is free.
export HOLDFAST_PORT=0
image=$HOLDFAST_IMAGE:$HOLDFAST_VERSION
# Under a name of its own: the engine may have the real one.
database=holdfast.local/postgres:test-$$
cleanup() {
  (cd "$work" && docker-compose down --volumes --timeout 5) >/dev/null 2>&1 || true
  docker rmi --force "$image" "$database" >/dev/null 2>&1 || true
  rm -rf --one-file-system "$work"
}
trap cleanup EXIT
. "$root/cross/check.sh"

# --- the database: made once, kept as an archive
debian=$target_dir/test-postgres-bookworm.tar
if [ ! -f "$debian" ]; then
  echo "making a Debian root with PostgreSQL …" >&2
  debootstrap --variant=minbase --include=postgresql-15 bookworm "$work/new" >"$work/debootstrap" 2>&1 ||
    { tail -n 20 "$work/debootstrap" >&2; die "debootstrap failed"; }
  ln -s ../lib/postgresql/15/bin/pg_isready "$work/new/usr/local/bin/pg_isready"
  cat >"$work/new/entrypoint" <<'ENTRYPOINT'
#!/bin/sh
# What PostgreSQL's image does with its settings, as far as compose.yaml has any.
set -e
export PATH="/usr/lib/postgresql/15/bin:$PATH"
data=/var/lib/postgresql/data
as="setpriv --reuid postgres --regid postgres --clear-groups"
install -d -m 0700 -o postgres -g postgres "$data"
if [ ! -f "$data/PG_VERSION" ]; then
  install -m 0400 -o postgres "$POSTGRES_PASSWORD_FILE" /tmp/password
  $as initdb -D "$data" -U "$POSTGRES_USER" --pwfile=/tmp/password --auth-local=trust --auth-host=scram-sha-256
  rm /tmp/password
  echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
  $as pg_ctl -D "$data" -o "-c listen_addresses=" -w start
  createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
  $as pg_ctl -D "$data" -m fast -w stop
fi
exec $as postgres -D "$data" -c listen_addresses='*'
ENTRYPOINT
  chmod 755 "$work/new/entrypoint"
  mkdir -p "$target_dir"
  tar -C "$work/new" --exclude=./var/cache/apt/archives/*.deb --exclude=./var/lib/apt/lists/* -cf "$debian.new" .
  mv "$debian.new" "$debian"
  rm -rf --one-file-system "$work/new"
fi
docker import --change 'ENTRYPOINT ["/entrypoint"]' "$debian" "$database" >/dev/null
skopeo copy --quiet --dest-daemon-host "${DOCKER_HOST:-unix:///var/run/docker.sock}" "oci-archive:$archive" \
  "docker-daemon:$image"

# --- the three commands at the head of compose.yaml
sed "s|^\( *image: \).*/postgres:.*|\1$database|" "$root/systemd/compose.yaml" >"$work/compose.yaml"
cd "$work"
# comes COMMAND…: within two minutes, which is longer than two databases need to start.
comes() {
  local deadline=$((SECONDS + 120))
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || { docker-compose logs --tail=20; return 1; }
    sleep 0.5
  done
}
is_healthy() {
  [ "$(docker inspect --format '{{.State.Health.Status}}' "$(docker-compose ps -q api)")" = healthy ]
}
# ask PATH [WORDS…]: as the owner, with the token that the first start left.
ask() {
  local path=$1 address token
  shift
  address=$(docker-compose port api 8080)
  token=$(docker cp "$(docker-compose ps -q api)":/var/lib/holdfast-api/admin-token - | tar -xO)
  curl -sSf --max-time 30 -H "Authorization: Bearer $token" "$@" "http://$address/api/v1$path"
}
comes_up() {
  openssl rand -hex 32 | install -m 0440 -g 65532 /dev/stdin database-password
  docker-compose up -d
  comes is_healthy
}
knows_its_fleet() {
  ask /fleets | jq -e '.items | map(.name) == ["kept"]'
}
serves_its_owner() {
  ask /fleets --json '{"name":"kept"}' && knows_its_fleet
}
is_bound() {
  docker inspect "$(docker-compose ps -q api)" | jq -e '.[0] |
    .HostConfig.ReadonlyRootfs and .HostConfig.CapDrop == ["ALL"] and (.Config.User | startswith("65532")) and
    (.NetworkSettings.Ports["8080/tcp"] | length > 0 and all(.HostIp == "127.0.0.1"))'
}
# By its own network it reaches the API and nobody else.
hides_its_database() {
  docker inspect "$(docker-compose ps -q database)" | jq -e '.[0].NetworkSettings |
    (.Networks | length == 1) and (.Ports | all(. == null))'
}
# New containers of the same volumes, as an upgrade makes.
keeps_what_it_knows() {
  docker-compose down --timeout 30 && docker-compose up -d && comes is_healthy && knows_its_fleet
}
# The engine's word on the API's health may be ten seconds old, so the API itself is asked.
outlives_its_database() {
  local before
  before=$(docker-compose ps -q api | xargs docker inspect --format '{{.State.StartedAt}}')
  docker-compose kill database && docker-compose up -d database && comes knows_its_fleet &&
    [ "$(docker-compose ps -q api | xargs docker inspect --format '{{.State.StartedAt}}')" = "$before" ]
}
check "API and PostgreSQL come up, and say that they are well" comes_up
check "it serves its owner, with the token of its first start" serves_its_owner
check "nobody in it can write to it, gain rights, or be reached from elsewhere" is_bound
check "the database is reached by the API alone" hides_its_database
check "new containers know what the old ones knew" keeps_what_it_knows
check "a database that is killed comes back to an API that goes on" outlives_its_database
checked
