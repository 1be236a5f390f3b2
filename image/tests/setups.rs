//! Private registries as their documentation sets them up: docker-registry with htpasswd, and behind nginx with a
//! self-signed certificate, a token server, a redirect to another host, and client certificates.
#![allow(missing_docs)]

mod common;

use common::programs::{BASIC, Running, listening_on, push, self_signed, start, start_with_htpasswd};
use common::{Codec, Node, build, noise, tar};
use image::{Auth, Error};
use std::path::Path;
use std::process::{Command, Stdio};

fn image() -> common::Built {
    build(&[(tar(&[("one", &noise(100_000, 3))]), Codec::Gzip), (tar(&[("two", b"2")]), Codec::Zstd)], "")
}

#[tokio::test]
async fn htpasswd() {
    let (registry, node) = (start_with_htpasswd().await, Node::new());
    let name = push(&registry, "team/app", "1.0", &image()).await;
    let user =
        |password: &str| Some(Auth { username: "user".into(), password: password.into(), ..Auth::default() });
    for auth in [None, user("hunter2")] {
        let error = node.store.pull(&name, auth).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
        let words = "UNAUTHORIZED: authentication required";
        assert!(error.to_string().contains(words) && !error.to_string().contains("hunter2"), "{error}");
    }
    node.store.pull(&name, user("secret")).await.unwrap();
    node.store.remove(&name).await.unwrap();
    // The file of `docker login`.
    let file = node.folder.path().join("config.json");
    let entry =
        format!("{{\"auths\":{{\"{}\":{{\"auth\":\"{}\"}}}}}}", registry.address, &BASIC["Basic ".len()..]);
    std::fs::write(&file, entry).unwrap();
    let other = Node::with(|options| options.credentials_file = Some(file.clone()));
    other.store.pull(&name, None).await.unwrap();
}

/// nginx, as one process, with these servers; `$PORT` and `$FOLDER` in them are replaced.
async fn nginx(folder: &Path, servers: &str) -> (Running, u16) {
    listening_on(|port| {
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {}/{kind};\n", folder.display()))
            .concat();
        let config = format!(
            "daemon off; master_process off; pid $FOLDER/pid; error_log $FOLDER/error.log;\n\
             events {{}}\n\
             http {{\n{temporary}\
             log_format sent '$request $status [$http_authorization]';\n\
             access_log off;\nclient_max_body_size 0;\n{servers}}}\n"
        );
        let config =
            config.replace("$PORT", &port.to_string()).replace("$FOLDER", &folder.display().to_string());
        std::fs::write(folder.join("nginx.conf"), config).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-c").arg(folder.join("nginx.conf")).stderr(Stdio::null());
        command
    })
    .await
}

/// A registry that is reached by TLS with a certificate of its own CA, asks for a token and offers Basic in the same
/// header, and has its blobs on another host.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "most of it is the configuration of the server")]
async fn token_server_and_storage_behind_tls() {
    let folder = tempfile::tempdir().unwrap();
    self_signed(folder.path(), "server", "IP:127.0.0.1");
    std::fs::write(folder.path().join("htpasswd"), "user:{PLAIN}secret\n").unwrap();
    // Both members, one of them empty, and a time of expiry that is no number.
    let token = "{\"token\":\"\",\"access_token\":\"t0ken\",\"expires_in\":\"soon\",\"issued_at\":null}";
    std::fs::write(folder.path().join("token.json"), token).unwrap();
    let registry = start(None).await;
    let image = image();
    push(&registry, "team/app", "1.0", &image).await;
    let servers = format!(
        "server {{\n\
           listen 127.0.0.1:$PORT ssl; ssl_certificate $FOLDER/server.crt; ssl_certificate_key $FOLDER/server.key;\n\
           access_log $FOLDER/access.log sent;\n\
           default_type application/json;\n\
           location = /token {{ auth_basic x; auth_basic_user_file $FOLDER/htpasswd; alias $FOLDER/token.json; }}\n\
           location /v2/ {{\n\
             error_page 401 = @challenge;\n\
             if ($http_authorization != \"Bearer t0ken\") {{ return 401; }}\n\
             rewrite ^/v2/(.*/blobs/.*)$ http://{storage}/v2/$1 redirect;\n\
             proxy_pass http://{storage};\n\
           }}\n\
           location @challenge {{\n\
             add_header WWW-Authenticate 'basic realm=\"x, y\", BEARER realm=\"https://127.0.0.1:$PORT/token?a=b\",service=\"s\",scope=\"repository:team/app:pull\"' always;\n\
             return 401 '{{\"errors\":[{{\"code\":\"UNAUTHORIZED\",\"message\":\"log in\"}}]}}';\n\
           }}\n\
         }}\n",
        storage = registry.address
    );
    let (_nginx, port) = nginx(folder.path(), &servers).await;
    let (node, authority) = (Node::new(), format!("127.0.0.1:{port}"));
    let name = format!("{authority}/team/app:1.0");
    let user =
        |password: &str| Some(Auth { username: "user".into(), password: password.into(), ..Auth::default() });
    let server = format!("server = \"https://{authority}\"\n");
    node.hosts(&authority, &server);
    let error = node.store.pull(&name, user("secret")).await.unwrap_err();
    assert!(
        matches!(error, Error::Unavailable { .. }) && error.to_string().contains("certificate"),
        "{error}"
    );
    node.hosts(&authority, &format!("{server}ca = \"{}\"\n", folder.path().join("server.crt").display()));
    let record = node.store.pull(&name, user("secret")).await.unwrap();
    assert_eq!(record.id, image.config);
    let log = std::fs::read_to_string(folder.path().join("access.log")).unwrap();
    let redirected = log.lines().filter(|line| line.contains("/blobs/") && line.contains(" 302 [Bearer"));
    assert_eq!(redirected.count(), 3, "{log}");
    // Those of the registry's own challenge are told, and those of the token server.
    for auth in [None, user("hunter2")] {
        let error = node.store.pull(&name, auth).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
        assert!(error.to_string().contains(&format!("token realm {authority}: status 401")), "{error}");
    }
    // The folder of Docker's pattern has the same certificate.
    let docker = Node::new();
    let certs = docker.folder.path().join("certs").join(format!("127.0.0.1_{port}_"));
    std::fs::create_dir_all(&certs).unwrap();
    std::fs::copy(folder.path().join("server.crt"), certs.join("ca.crt")).unwrap();
    docker.store.pull(&name, user("secret")).await.unwrap();
}

#[tokio::test]
async fn client_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let registry = start(None).await;
    push(&registry, "team/app", "1.0", &image()).await;
    self_signed(folder.path(), "server", "IP:127.0.0.1");
    self_signed(folder.path(), "client", "DNS:node");
    self_signed(folder.path(), "other", "DNS:node");
    let servers = format!(
        "server {{\n\
           listen 127.0.0.1:$PORT ssl; ssl_certificate $FOLDER/server.crt; ssl_certificate_key $FOLDER/server.key;\n\
           ssl_client_certificate $FOLDER/client.crt; ssl_verify_client on;\n\
           location /v2/ {{ proxy_pass http://{}; }}\n\
         }}\n",
        registry.address
    );
    let (_nginx, port) = nginx(folder.path(), &servers).await;
    let path = |file: &str| folder.path().join(file).display().to_string();
    let read = |file: &str| std::fs::read_to_string(folder.path().join(file)).unwrap();
    std::fs::write(folder.path().join("both.pem"), read("client.crt") + &read("client.key")).unwrap();
    let (node, authority) = (Node::new(), format!("127.0.0.1:{port}"));
    let name = format!("{authority}/team/app:1.0");
    let (both, certificate, key) = (path("both.pem"), path("client.crt"), path("client.key"));
    for (client, is_served) in [
        (String::new(), false),
        (format!("client = [[\"{}\", \"{}\"]]", path("other.crt"), path("other.key")), false),
        (format!("client = \"{both}\""), true),
        (format!("client = [\"{both}\"]"), true),
        (format!("client = [[\"{certificate}\", \"{key}\"]]"), true),
        (format!("client = [[\"{both}\", \"\"]]"), true),
    ] {
        let ca = path("server.crt");
        node.hosts(&authority, &format!("server = \"https://{authority}\"\nca = \"{ca}\"\n{client}\n"));
        let pulled = node.store.pull(&name, None).await;
        assert_eq!(pulled.is_ok(), is_served, "{client}: {pulled:?}");
    }
}

/// A registry that asks for a client certificate, with its token server and its storage on another host.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "the servers' configuration is read with what is expected of it")]
async fn settings_of_tls_are_for_their_host() {
    let folder = tempfile::tempdir().unwrap();
    let registry = start(None).await;
    let image = image();
    push(&registry, "team/app", "1.0", &image).await;
    self_signed(folder.path(), "server", "IP:127.0.0.1,IP:127.0.0.2");
    self_signed(folder.path(), "client", "DNS:node");
    std::fs::write(folder.path().join("token.json"), "{\"token\":\"t0ken\"}").unwrap();
    let servers = format!(
        "log_format client '$host $uri $ssl_client_verify'; default_type application/json;\n\
         ssl_certificate $FOLDER/server.crt; ssl_certificate_key $FOLDER/server.key;\n\
         ssl_client_certificate $FOLDER/client.crt;\n\
         server {{\n\
           listen 127.0.0.1:$PORT ssl; access_log $FOLDER/clients.log client; ssl_verify_client on;\n\
           location /v2/ {{\n\
             error_page 401 = @challenge;\n\
             if ($http_authorization != \"Bearer t0ken\") {{ return 401; }}\n\
             rewrite ^/v2/(.*/blobs/.*)$ https://127.0.0.2:$PORT/v2/$1 redirect;\n\
             proxy_pass http://{storage};\n\
           }}\n\
           location @challenge {{\n\
             add_header WWW-Authenticate 'Bearer realm=\"https://127.0.0.2:$PORT/token\"' always;\n\
             return 401 '';\n\
           }}\n\
         }}\n\
         server {{\n\
           listen 127.0.0.2:$PORT ssl; access_log $FOLDER/clients.log client; ssl_verify_client optional_no_ca;\n\
           location = /token {{ alias $FOLDER/token.json; }}\n\
           location /v2/ {{ proxy_pass http://{storage}; }}\n\
         }}\n",
        storage = registry.address
    );
    let (_nginx, port) = nginx(folder.path(), &servers).await;
    let path = |file: &str| folder.path().join(file).display().to_string();
    let (node, authority) = (Node::new(), format!("127.0.0.1:{port}"));
    let name = format!("{authority}/team/app:1.0");
    let client = format!("client = [[{:?}, {:?}]]\n", path("client.crt"), path("client.key"));
    let (ca, server) =
        (format!("ca = {:?}\n", path("server.crt")), format!("server = \"https://{authority}\"\n"));
    // It is not verified, but what it leads to is.
    node.hosts(&authority, &format!("{server}{client}skip_verify = true\n"));
    let error = node.store.pull(&name, None).await.unwrap_err().to_string();
    assert!(
        error.contains(&format!("token realm 127.0.0.2:{port}: ")) && error.contains("certificate"),
        "{error}"
    );
    // The CA is trusted for all.
    node.hosts(&authority, &format!("{server}{client}{ca}"));
    assert_eq!(node.store.pull(&name, None).await.unwrap().id, image.config);
    let log = std::fs::read_to_string(folder.path().join("clients.log")).unwrap();
    let of = |host: &str| log.lines().filter(|line| line.starts_with(host)).collect::<Vec<_>>();
    let (own, other) = (of("127.0.0.1 "), of("127.0.0.2 "));
    assert!(own.len() > 4 && own.iter().all(|line| line.ends_with(" SUCCESS")), "{log}");
    assert!(other.len() >= 4 && other.iter().all(|line| line.ends_with(" NONE")), "{log}");
}
