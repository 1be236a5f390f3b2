//! Tokens for the distribution protocol: requested from the realm that a challenge names.

use super::fault::Fault;
use super::request::{MAX_REDIRECTS, PRODUCT, redirect_target};
use super::{Endpoint, Registry};
use crate::Auth;
use crate::registry::auth;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode, Uri};
use serde_json::Value;

/// Maximum size of a token response. Real ones have a few KiB.
const MAX_TOKEN: u64 = 1 << 20;

impl Registry {
    /// Sends a request to a token server, and to where that redirects it.
    async fn ask(
        &self,
        endpoint: &Endpoint,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Fault> {
        let host = request.uri().authority().map(|host| host.as_str().to_owned()).unwrap_or_default();
        let asked = async {
            for _ in 0..=MAX_REDIRECTS {
                let http = endpoint
                    .client_for(request.uri())
                    .map_err(|out_of_reach| Fault::Final(out_of_reach.to_string()))?;
                let response = self.send(http, request.clone()).await?;
                // The other redirects would make another request of a POST.
                let follows = match response.status().as_u16() {
                    301..=303 => request.method() == Method::GET,
                    status => matches!(status, 307 | 308),
                };
                if !follows {
                    return Ok(response);
                }
                let target = redirect_target(request.uri(), &response)?;
                request = moved(request, target)?;
            }
            Err(Fault::Final(format!("more than {MAX_REDIRECTS} redirects")))
        };
        asked.await.map_err(|fault| fault.about(&format!("token realm {host}")).of_another_host())
    }

    /// Requests a token from the realm, with the user's credentials if there are any.
    pub(super) async fn token(
        &self,
        endpoint: &Endpoint,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        auth: Option<&Auth>,
    ) -> Result<HeaderValue, Fault> {
        let no_url = || Fault::Final("token realm is not a URL".to_owned());
        let mut uri = auth::realm_url(realm).ok_or_else(no_url)?;
        if endpoint.host.scheme == "https" {
            uri = auth::with_own_tls(uri, &endpoint.host.authority);
        }
        let host = uri.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
        let own_scope = format!("repository:{}:pull", self.reference.repository());
        let scope = scope.filter(|scope| !scope.is_empty()).unwrap_or(&own_scope);
        if endpoint.host.scheme == "https" && uri.scheme_str() == Some("http") && auth.is_some() {
            return Err(Fault::Final(format!(
                "token realm {host} is http: it would receive the credentials unencrypted"
            )));
        }
        let mut pairs = vec![("scope", scope)];
        pairs.extend(service.map(|service| ("service", service)));
        let password = auth.and_then(auth::user_and_password);
        let identity = auth.map(|auth| auth.identity_token.as_str()).filter(|token| !token.is_empty());
        let mut response = None;
        if let Some(identity) = identity {
            let request = refresh_request(&uri, &pairs, identity).map_err(|_| no_url())?;
            let answer = self.ask(endpoint, request).await?;
            // A realm without OAuth2 may still take a password.
            let is_unknown = matches!(answer.status().as_u16(), 404 | 405);
            response = Some(answer).filter(|_| !is_unknown || password.is_none());
        }
        let response = match response {
            Some(response) => response,
            None => {
                let request = password_request(&uri, &pairs, password.as_ref()).ok_or_else(no_url)?;
                self.ask(endpoint, request).await?
            }
        };
        match response.status() {
            StatusCode::OK => {}
            _ => {
                let fault = self.fault(response).await.about(&format!("token realm {host}"));
                return Err(fault.of_another_host());
            }
        }
        let bytes = self.read_all(response, MAX_TOKEN).await.map_err(Fault::of_another_host)?;
        let unusable = || Fault::Final(format!("token realm {host} sent no valid token"));
        let answer: Value = serde_json::from_slice(&bytes).map_err(|_| unusable())?;
        // Realms send one of the two or both, and one of them may be empty or null. When the token expires is not read:
        // the registry answers with another challenge then.
        let tokens = ["token", "access_token"].into_iter().filter_map(|key| answer.get(key)?.as_str());
        let token = tokens.map(str::trim).find(|token| !token.is_empty());
        token.and_then(auth::bearer).ok_or_else(unusable)
    }
}

/// The request for the target of a redirect. It must have TLS, unless it is the same host without. Another host gets no
/// credentials.
fn moved(mut request: Request<Full<Bytes>>, target: Uri) -> Result<Request<Full<Bytes>>, Fault> {
    let from = request.uri();
    // A port that is its scheme's own may be stated.
    let port = |uri: &Uri| uri.port_u16().filter(|port| (uri.scheme_str(), *port) != (Some("https"), 443));
    let same_host = from.host() == target.host() && port(from) == port(&target);
    let has_tls = target.scheme_str() == Some("https");
    let host = target.authority().map_or("", |authority| authority.as_str());
    if !(has_tls || same_host && from.scheme() == target.scheme()) {
        return Err(Fault::Final(format!("redirect to {host} by http, where a token is not safe")));
    }
    if !same_host {
        if request.method() == Method::POST {
            return Err(Fault::Final(format!("redirect to {host}, which must not get the refresh token")));
        }
        request.headers_mut().remove(AUTHORIZATION);
    }
    *request.uri_mut() = target;
    Ok(request)
}

/// Exchanges a refresh token (OAuth2, RFC 6749, 6).
fn refresh_request(
    uri: &Uri,
    pairs: &[(&str, &str)],
    identity: &str,
) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let own = [("grant_type", "refresh_token"), ("refresh_token", identity), ("client_id", "copepod")];
    let pairs = [pairs, &own].concat();
    Request::builder()
        .method(Method::POST)
        .uri(uri.clone())
        .header(USER_AGENT, PRODUCT)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::new(auth::form(&pairs).into()))
}

/// Requests a token with a password, or as nobody (the distribution project's token protocol).
fn password_request(
    uri: &Uri,
    pairs: &[(&str, &str)],
    password: Option<&(String, String)>,
) -> Option<Request<Full<Bytes>>> {
    let account = password.map(|(user, _)| ("account", user.as_str()));
    let pairs: Vec<_> = pairs.iter().copied().chain(account).collect();
    let mut request = Request::builder().uri(auth::with_query(uri, &pairs)?).header(USER_AGENT, PRODUCT);
    if let Some(basic) = password.and_then(|(user, password)| auth::basic(user, password)) {
        request = request.header(AUTHORIZATION, basic);
    }
    request.body(Full::default()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_of_token_requests() {
        let (http, https, other) =
            ("http://a.example/token", "https://a.example/token", "https://b.example/x");
        for (method, from, to, expected) in [
            ("GET", https, "https://a.example/y", Ok(true)),
            ("POST", https, "https://a.example/y", Ok(true)),
            ("GET", http, "http://a.example/y", Ok(true)),
            ("GET", http, https, Ok(true)),
            ("GET", https, other, Ok(false)),
            ("GET", https, "https://a.example:8443/", Ok(false)),
            ("GET", https, "https://a.example:443/", Ok(true)),
            ("POST", https, other, Err("must not get the refresh token")),
            ("GET", https, http, Err("not safe")),
            ("GET", http, "http://b.example/", Err("not safe")),
            ("GET", http, "http://a.example:81/", Err("not safe")),
        ] {
            let request =
                Request::builder().method(method).uri(from).header(AUTHORIZATION, "x").body(Full::default());
            let moved = moved(request.unwrap(), to.parse().unwrap());
            match (moved, expected) {
                (Ok(moved), Ok(keeps)) => {
                    assert_eq!(moved.headers().contains_key(AUTHORIZATION), keeps, "{from} to {to}");
                    assert_eq!((moved.uri().to_string().as_str(), moved.method().as_str()), (to, method));
                }
                (Err(Fault::Final(reason)), Err(part)) => assert!(reason.contains(part), "{reason}"),
                (moved, _) => panic!("{method} {from} to {to}: {moved:?}"),
            }
        }
    }
}
